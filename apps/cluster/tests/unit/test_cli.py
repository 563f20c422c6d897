from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from skate_cluster.cli import cli
from skate_node.session import NodeRecord, create_session, write_record

OPEN_SPELLINGS = [
    ["--no-token"],
    ["--no-auth"],
    ["--insecure"],
    ["--auth=off"],
    ["--auth", "off"],
    ["--auth-mode=none"],
    ["--disable-auth"],
]


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), env={"SKATE_ADDRESS": None, **environment})


@pytest.mark.parametrize("spelling", OPEN_SPELLINGS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_start_without_a_token_is_refused_in_every_spelling(spelling: list[str], host: str) -> None:
    result = invoke("start", "--head", "--host", host, *spelling)
    assert result.exit_code == 2
    assert "always has a token" in result.output


@pytest.mark.parametrize("host", ["", "*", " "])
def test_start_host_that_names_no_address_is_refused(host: str) -> None:
    assert invoke("start", "--head", "--host", host).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--head", "--address", "127.0.0.1:1"],
        ["--head", "--num-cpus", "-1"],
        ["--head", "--num-cpus", "many"],
        ["--head", "--resources", "{"],
        ["--head", "--resources", '{"CPU": 1}'],
        ["--head", "--labels", "zone"],
        ["--head", "--port", "70000"],
        ["--head", "--object-store-memory", "1"],
        ["--head", "--storage", "etcd://x"],
        ["--address", "127.0.0.1:1", "--port", "5"],
        ["--address", "127.0.0.1:1"],
    ],
)
def test_start_wrong_usage_exits_2_before_anything_starts(
    temp_dir: str, arguments: list[str]
) -> None:
    result = invoke("start", "--temp-dir", temp_dir, *arguments)
    assert result.exit_code == 2
    assert os.listdir(temp_dir) == []


def test_start_empty_token_file_is_refused(temp_dir: str) -> None:
    path = Path(temp_dir, "token")
    path.touch(0o600)
    result = invoke("start", "--head", "--token-file", str(path))
    assert result.exit_code != 0
    assert "token" in result.output


def test_start_second_head_on_one_port_is_refused(temp_dir: str) -> None:
    session = create_session(temp_dir)
    write_record(
        NodeRecord(
            session_dir=session.path,
            node_id="ab",
            pid=os.getpid(),
            is_head=True,
            is_owned=False,
            keeps_logs=True,
            gcs_endpoint="127.0.0.1:6379",
            stream_endpoint="",
            store_endpoint="",
            raylet_endpoint="",
            metrics_endpoint="",
            api_endpoint="",
            node_name="n",
            ip_address="127.0.0.1",
            start_time_s=1.0,
        )
    )
    result = invoke("start", "--head", "--temp-dir", temp_dir)
    assert result.exit_code == 1
    assert "already runs at 127.0.0.1:6379" in result.output
    assert "--port" in result.output
    session.close()


def test_status_without_a_cluster_exits_3(temp_dir: str) -> None:
    result = invoke("status", "--temp-dir", temp_dir)
    assert result.exit_code == 3
    assert "skate start --head" in result.output


def test_status_of_a_foreign_cluster_without_its_token_exits_3(temp_dir: str) -> None:
    result = invoke("status", "--temp-dir", temp_dir, "--address", "10.0.0.9:6379")
    assert result.exit_code == 3
    assert "--token-file" in result.output


def test_run_missing_script_exits_4(temp_dir: str) -> None:
    assert invoke("run", "--temp-dir", temp_dir, "no_such_script.py").exit_code == 4


def test_run_without_a_cluster_exits_3(temp_dir: str) -> None:
    assert invoke("run", "--temp-dir", temp_dir, __file__).exit_code == 3


def test_stop_without_nodes_is_no_error(temp_dir: str) -> None:
    result = invoke("stop", "--temp-dir", temp_dir)
    assert result.exit_code == 0
    assert "No node runs here" in result.output


def test_untrusted_temp_dir_is_one_sentence(temp_dir: str) -> None:
    os.chmod(temp_dir, 0o777)
    result = invoke("start", "--head", "--temp-dir", temp_dir)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "sticky" in result.output


def test_unknown_command_exits_2() -> None:
    assert invoke("fly").exit_code == 2


def test_help_imports_neither_a_command_nor_grpc() -> None:
    script = (
        "import sys\n"
        "from skate_cluster.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'grpc', 'skate_rpc', 'skate_node', 'asyncio'} & set(sys.modules)\n"
        "sys.exit(','.join(sorted(heavy)) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "start" in done.stdout
