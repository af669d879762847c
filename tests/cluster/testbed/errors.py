"""What a contributor is told when the testbed cannot do what was asked: one sentence, with what to do next."""


class TestbedError(RuntimeError):
    """The message says what happened and what to do."""

    __test__ = False  # pytest takes a class named Test… for tests


class Unable(TestbedError):
    """This machine cannot run a testbed. Tests skip, except in CI."""
