"""Real connections for the tests of what is shown."""
import contextlib

from lab import warm


@contextlib.contextmanager
def conversation(pods, port=6379, rounds=20):
    """One connection of two attached pods with messages both ways; blocking sockets, so attach with --eligibility all."""
    a, b = pods[0].peer(), pods[1].peer()
    listener = b.listen("0.0.0.0", port)
    client = a.connect(pods[1].ip, port)
    server = listener.accept()
    warm(client, server, rounds)
    yield client, server
    client.close()
    server.close()
    listener.close()
