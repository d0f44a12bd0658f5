import pytest
from agent import Agent
from runtime import Runtime


@pytest.fixture(scope="module")
def runtime():
    """A node with containerd. Nothing of it is the host's."""
    with Runtime() as made:
        yield made


@pytest.fixture
def pod(lab, runtime):
    """Makes pods, removed with the test: before `lab` ends, which wants no connection left."""
    def make(name, **kw):
        made.append(runtime.pod(name, **kw))
        return made[-1]
    made = []
    yield make
    if not runtime.process:  # a test that failed between stop() and start()
        runtime.start()
    runtime.remove([p for p in made if not p.removed])


@pytest.fixture
def agent(lab, runtime):
    """Starts agents with the text of a file, ended with the test."""
    made = []

    def make(text="", *options, **kw):
        made.append(Agent(lab, runtime, text, *options, **kw))
        return made[-1]
    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            one.stop()
