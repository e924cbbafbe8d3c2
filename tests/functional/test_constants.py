"""stop_gradient: a constant that a derivative can be taken beside."""

import torch

from alignlab.functional import held_constants, stop_gradient


def test_it_is_the_value_without_its_gradient():
    x = torch.tensor(3.0, requires_grad=True)
    (stop_gradient(x) * x).backward()
    assert x.grad == 3  # not 6


def test_held_constants_come_again_in_their_order_whatever_the_values_are_now():
    x = torch.tensor([2.0, 5.0])
    with held_constants() as tape:
        assert [stop_gradient(each).item() for each in x] == [2, 5]
        x += 1
        for _ in range(2):
            tape.rewind()
            assert [stop_gradient(each).mul_(2).item() for each in x] == [4, 10]
    assert stop_gradient(x).tolist() == [3, 6]  # and afterwards nothing is held
