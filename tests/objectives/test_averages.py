import pytest
import torch
from lightning.pytorch import Trainer

from alignlab.objectives import Loss
from alignlab.objectives.averages import Averages


@pytest.fixture
def strategy():
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).strategy


def test_means_are_weighted_each_over_the_batches_that_report_it(strategy):
    averages = Averages()
    averages.add(Loss(torch.tensor(1.0), 3, {"a": torch.tensor(10.0)}))
    averages.add(Loss(torch.tensor(5.0), 1, {"a": torch.tensor(2.0), "b": torch.tensor(7.0)}))
    # loss (3 * 1 + 1 * 5) / 4, a (3 * 10 + 1 * 2) / 4, b only from the second
    assert averages.flush(strategy) == {"loss": 2.0, "a": 8.0, "b": 7.0}
    assert averages.flush(strategy) == {}


def test_a_reported_parameter_is_read_when_it_is_reported(strategy):
    scale, averages = torch.nn.Parameter(torch.tensor(1.0)), Averages()
    averages.add(Loss(torch.tensor(0.0), 1, {"scale": scale.detach()}))
    with torch.no_grad():
        scale += 5.0
    assert averages.flush(strategy)["scale"] == 1.0
