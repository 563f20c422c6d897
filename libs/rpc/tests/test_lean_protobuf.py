"""What generated code loads of protobuf, each time in a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("google.protobuf")

IMPORT = "import sys\nfrom skate_rpc.gen.skate.v1 import gcs_pb2\n"
NODE = "node = gcs_pb2.NodeInfo(node_id=b'1', labels={'a': 'b'})\n"


def run(code: str, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env={**os.environ, **environment}, check=True
    )


def test_importing_and_using_messages_loads_no_text_format() -> None:
    use = "assert gcs_pb2.NodeInfo.FromString(node.SerializeToString()) == node\nrepr(node)\n"
    run(IMPORT + NODE + use + "assert 'google.protobuf.text_format' not in sys.modules\n")


def test_text_and_json_formats_work_on_messages() -> None:
    formats = "from google.protobuf import json_format, text_format\n"
    text = (
        "assert text_format.Parse(text_format.MessageToString(node), gcs_pb2.NodeInfo()) == node\n"
    )
    json = "assert json_format.Parse(json_format.MessageToJson(node), gcs_pb2.NodeInfo()) == node\n"
    run(IMPORT + formats + NODE + text + json)


def test_module_put_off_is_whole_when_it_is_asked_for() -> None:
    run(
        IMPORT
        + "from google.protobuf.internal import python_message\n"
        + "assert python_message.GeneratedProtocolMessageType\n"
        + "assert 'google.protobuf.text_format' in sys.modules\n"
    )


def test_messages_work_on_the_python_implementation() -> None:
    run(
        IMPORT + NODE + "assert gcs_pb2.NodeInfo.FromString(node.SerializeToString()) == node\n",
        PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python",
    )
