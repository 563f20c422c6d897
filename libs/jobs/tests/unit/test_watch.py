from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from skate_jobs.machine.records import (
    ErrorType,
    Job,
    JobEnd,
    JobRun,
    JobSpec,
    JobStatus,
    JobStop,
)
from skate_jobs.machine.watch import (
    START_TIMEOUT_S,
    AskToStop,
    CreateSupervisor,
    EndSupervisor,
    Step,
    Supervisor,
    SupervisorState,
    WriteEnd,
    next_steps,
)

SPEC = JobSpec("j", "run me", 100.0, "w")
RUN = JobRun("w", 101.0, b"n", "127.0.0.1", 7, "log")
STOP = JobStop(102.0)
END = JobEnd(JobStatus.SUCCEEDED, "done", 103.0)
ABSENT, PENDING, ALIVE, DEAD = (Supervisor(state, "why") for state in SupervisorState)


@pytest.mark.parametrize(
    ("job", "supervisor", "steps"),
    [
        (Job(SPEC), ABSENT, [CreateSupervisor()]),
        (Job(SPEC), PENDING, []),
        (Job(SPEC), ALIVE, []),
        (Job(SPEC, RUN), ALIVE, []),
        (Job(SPEC, RUN, STOP), ALIVE, [AskToStop()]),
        (Job(SPEC, RUN, None, END), ALIVE, [EndSupervisor()]),
        (Job(SPEC, RUN, None, END), DEAD, []),
        (Job(SPEC, RUN, None, END), ABSENT, []),
    ],
)
def test_steps_of_a_job_that_goes_well(job: Job, supervisor: Supervisor, steps: list[Step]) -> None:
    assert next_steps(job, supervisor, 104.0) == steps


@pytest.mark.parametrize("job", [Job(SPEC), Job(SPEC, RUN)])
def test_job_whose_supervisor_died_has_failed_with_the_cause(job: Job) -> None:
    (step,) = next_steps(job, DEAD, 104.0)
    assert isinstance(step, WriteEnd)
    assert step.end.status is JobStatus.FAILED
    assert step.end.error_type == ErrorType.SUPERVISOR_DIED
    assert step.end.message == "Job supervisor died: why"


def test_job_that_ran_and_has_no_supervisor_any_more_is_not_started_again() -> None:
    (step,) = next_steps(Job(SPEC, RUN), ABSENT, 104.0)
    assert isinstance(step, WriteEnd)
    assert step.end.error_type == ErrorType.SUPERVISOR_DIED


def test_job_that_is_stopped_before_it_started_ends_before_its_supervisor() -> None:
    first, second = next_steps(Job(SPEC, None, STOP), PENDING, 104.0)
    assert isinstance(first, WriteEnd)
    assert first.end.status is JobStatus.STOPPED
    assert second == EndSupervisor()


def test_job_that_finds_no_place_in_time_has_failed_and_says_why() -> None:
    now_s = SPEC.submitted_s + START_TIMEOUT_S
    assert next_steps(Job(SPEC), PENDING, now_s) == []
    first, second = next_steps(Job(SPEC), PENDING, now_s + 1)
    assert isinstance(first, WriteEnd)
    assert first.end.error_type == ErrorType.SUPERVISOR_START_TIMEOUT
    assert first.end.message.endswith("why")
    assert second == EndSupervisor()


def test_state_follows_from_the_facts() -> None:
    assert Job(SPEC).status is JobStatus.PENDING
    assert Job(SPEC, RUN).status is JobStatus.RUNNING
    assert Job(SPEC, None, STOP).status is JobStatus.PENDING
    assert Job(SPEC, RUN, STOP, END).status is JobStatus.SUCCEEDED


# ---- any interleaving of managers, a supervisor, a user, and deaths of all of them ----


@dataclass
class World:
    """One job. Facts are written once; each write is a step in which anybody may be killed."""

    random: random.Random
    facts: dict[str, object] = field(default_factory=lambda: {"spec": SPEC})
    actor: SupervisorState = SupervisorState.ABSENT
    starts: int = 0
    child: bool = False
    stop_asked: bool = False
    phase: str = ""  # of the supervisor: "", took, checked, running, ended
    ends: list[JobEnd] = field(default_factory=list)
    plans: list[list[Step]] = field(default_factory=list)  # managers in the middle of a look
    now_s: float = 104.0

    def put(self, name: str, fact: object) -> bool:
        holds = self.facts.setdefault(name, fact) is fact
        if holds and isinstance(fact, JobEnd):
            self.ends.append(fact)
        return holds

    def job(self) -> Job:
        return Job(SPEC, *(self.facts.get(name) for name in ("run", "stop", "end")))  # type: ignore[arg-type]

    def look(self) -> None:
        seen = Supervisor(self.actor, "why")
        self.supervise(self.random.randrange(3))  # things happen between the two readings
        self.plans.append(next_steps(self.job(), seen, self.now_s))

    def manage(self) -> None:
        if not self.plans:
            self.look()
            return
        plan = self.random.choice(self.plans)
        if not plan or self.random.random() < 0.1:  # done, or killed
            self.plans.remove(plan)
            return
        match plan.pop(0):
            case CreateSupervisor():
                if self.actor is SupervisorState.ABSENT:  # the name is unique
                    self.actor = SupervisorState.PENDING
            case WriteEnd(end):
                self.put("end", end)
            case AskToStop():
                self.stop_asked = self.stop_asked or self.actor is SupervisorState.ALIVE
            case EndSupervisor():
                self.kill()

    def supervise(self, steps: int = 1) -> None:
        for _ in range(steps):
            if self.actor is SupervisorState.PENDING:
                self.actor = SupervisorState.ALIVE
            elif self.actor is SupervisorState.ALIVE:
                self.act()

    def act(self) -> None:
        match self.phase:
            case "":
                self.phase = "took" if self.put("run", RUN) else "idle"
            case "took":
                self.phase = "idle" if "end" in self.facts else "checked"
            case "checked":
                self.starts += 1
                self.child, self.phase = True, "running"
            case "running":
                if self.stop_asked or self.random.random() < 0.3:
                    status = JobStatus.STOPPED if self.stop_asked else JobStatus.SUCCEEDED
                    self.child = False
                    self.phase = "idle"
                    self.put("end", JobEnd(status, "", self.now_s))

    def kill(self) -> None:
        if self.actor in (SupervisorState.PENDING, SupervisorState.ALIVE):
            self.actor = SupervisorState.DEAD
            self.child = False

    def ask_stop(self) -> None:
        self.put("stop", JobStop(self.now_s))


def play(seed: int) -> World:
    draw = random.Random(seed)
    world = World(draw)
    for _ in range(40):
        chance = draw.random()
        if chance < 0.5:
            world.manage()
        elif chance < 0.9:
            world.supervise()
        elif chance < 0.95:
            world.kill()
        else:
            world.ask_stop()
    for _ in range(200):  # nobody is killed any more
        world.manage()
        world.supervise()
    return world


@pytest.mark.invariant("I20")
def test_job_starts_at_most_once_and_reaches_exactly_one_end_whoever_is_killed() -> None:
    ends = set()
    for seed in range(2000):
        world = play(seed)
        assert world.starts <= 1, f"seed {seed}"
        assert len(world.ends) == 1, f"seed {seed}"
        assert not world.child, f"seed {seed}: the entry point outlives its job"
        assert world.actor in (SupervisorState.ABSENT, SupervisorState.DEAD), f"seed {seed}"
        if world.ends[0].status is JobStatus.SUCCEEDED:
            assert world.starts == 1, f"seed {seed}"
        ends.add(world.ends[0].status)
    assert ends == {JobStatus.SUCCEEDED, JobStatus.STOPPED, JobStatus.FAILED}
