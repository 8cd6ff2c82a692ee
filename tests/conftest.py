"""Fixtures that several test modules share."""

import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """For tiny models: with two threads, each small product spends its time waiting for the other one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
