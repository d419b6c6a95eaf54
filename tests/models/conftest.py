"""One thread: these models are small, and idle threads of a busy machine cost more than they give."""

import pytest


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """These models are small."""
