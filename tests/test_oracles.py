"""The oracles and their placebos: what they know, what a placebo does not, where both become a known objective."""

import copy
import importlib
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from alignlab import InputError, certify
from alignlab.adapters import adapter_parameters
from alignlab.backbones import Backbone
from alignlab.batch import ROLES, Turn
from alignlab.functional import normalize, sequence_logps, supervised, token_logps
from alignlab.objectives import CAL, MLE, InfoNCE

FOLDER = Path(__file__).parents[1] / "experiments" / "oracles"
FILES = {
    "RoleMLE": "role_mle",
    "BlindCAL": "blind_cal",
    "GroupInfoNCE": "group_infonce",
    "TruePreference": "true_preference",
    "RandomTokens": "random_tokens",
}


@pytest.fixture
def make(monkeypatch):
    """Make an oracle by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name, *arguments, **settings: getattr(importlib.import_module(FILES[name]), name)(
        *arguments, **settings
    )


@pytest.fixture(scope="session")
def known(examples):
    """Eight examples whose every second word contradicts the picture, in groups of three and two and alone."""
    groups = ("a", "a", "", "b", "a", "b", "", "c")
    made = []
    for example, group in zip(examples[:8], groups, strict=True):
        words = example.conversation[-1].content[0].split()
        roles = tuple(("filler", "contradictory")[index % 2] for index in range(len(words)))
        made.append(replace(example, roles=roles, group=group, rejected=(" ".join(reversed(words)) + " yes",)))
    return made


def batch_of(objective, examples):
    return objective.backbone.encoder.batch(examples, objective.requires)


def losses_of(backbone, batch):
    """-log p of every token (B, T-1), and its role."""
    chat = batch.conversation
    return -token_logps(backbone(chat).logits, chat.labels), batch.roles[:, 1:]


class TestRoleMLE:
    def test_weights_of_one_give_mle(self, make, tiny_backbone64, known):
        oracle = make("RoleMLE", tiny_backbone64, contradictory=1.0)
        loss, plain = oracle.loss(batch_of(oracle, known)), MLE(tiny_backbone64).loss(batch_of(oracle, known))
        torch.testing.assert_close(loss.mean, plain.mean)
        assert loss.weight == plain.weight
        torch.testing.assert_close(loss.report["likelihood_loss"], plain.mean.detach())

    def test_the_mean_is_over_what_the_weights_leave(self, make, tiny_backbone64, known):
        oracle = make("RoleMLE", tiny_backbone64, filler=0.5)
        batch = batch_of(oracle, known)
        losses, roles = losses_of(tiny_backbone64, batch)
        filler, closing = roles == ROLES.index("filler"), supervised(batch.conversation.labels) & (roles < 0)
        total = 0.5 * filler.sum() + closing.sum()
        assert closing.sum() == 8  # the template's closing tokens weigh 1
        loss = oracle.loss(batch)
        torch.testing.assert_close(loss.mean, (0.5 * losses[filler].sum() + losses[closing].sum()) / total)
        assert loss.weight == total

    def test_forgotten_tokens_have_no_gradient(self, make, tiny_backbone64, known):
        oracle = make("RoleMLE", tiny_backbone64)
        batch = batch_of(oracle, known)
        oracle.loss(batch)  # once before, as what the model's head gives is compared with what the model gives
        seen = []

        def keep(module, given, logits):
            logits.retain_grad()
            seen.append(logits)

        tiny_backbone64.model.get_output_embeddings().register_forward_hook(keep)
        oracle.loss(batch).mean.backward()
        moved = seen[0].grad[:, :-1].abs().sum(-1) > 0
        kept = supervised(batch.conversation.labels) & (batch.roles[:, 1:] != ROLES.index("contradictory"))
        assert torch.equal(moved, kept)

    def test_the_placebo_drops_as_many_tokens_but_others(self, make, tiny_backbone64, known):
        oracle = make("RoleMLE", tiny_backbone64)
        placebo = make("RoleMLE", tiny_backbone64, shuffled=True)
        batch = batch_of(oracle, known)
        one, other = oracle.loss(batch), placebo.loss(batch)
        assert one.weight == other.weight and abs(one.mean - other.mean) > 1e-4

    def test_the_placebo_is_deterministic_and_blind_to_order(self, make, tiny_backbone64, known):
        placebo = make("RoleMLE", tiny_backbone64, filler=0.3, shuffled=True)
        state = torch.get_rng_state()
        loss = placebo.loss(batch_of(placebo, known)).mean
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(placebo.loss(batch_of(placebo, known)).mean, loss)
        torch.testing.assert_close(placebo.loss(batch_of(placebo, known[::-1])).mean, loss)
        renamed = [replace(example, id=f"{example.id}'") for example in known]
        assert abs(placebo.loss(batch_of(placebo, renamed)).mean - loss) > 1e-4

    def test_the_placebo_moves_weights_only_among_words(self, make, monkeypatch):
        monkeypatch.syspath_prepend(FOLDER)
        from role_mle import dealt as deal

        weights = torch.tensor([[9.0, 0.0, 1.0, 0.0, 1.0, 8.0], [7.0, 1.0, 0.0, 6.0, 6.0, 6.0]])
        where = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
        dealt = {deal(weights, where, (f"{trial}", "b")) for trial in range(20)}
        for each in dealt:
            assert torch.equal(each[~where], weights[~where])
            assert sorted(each[where].tolist()) == [0, 0, 0, 1, 1, 1]
        shares = torch.stack([each[0, 1:5] for each in dealt]).mean(0)
        assert (shares > 0.2).all() and (shares < 0.8).all()  # no place is spared, none always chosen

    def test_closing_tokens_keep_their_weight_in_the_placebo(self, make, tiny_backbone64, known):
        settings = {"visual": 0.0, "filler": 0.0, "contradictory": 0.0}
        oracle, placebo = (make("RoleMLE", tiny_backbone64, **settings, shuffled=flag) for flag in (False, True))
        batch = batch_of(oracle, known)
        assert torch.equal(oracle.loss(batch).mean, placebo.loss(batch).mean)

    def test_without_contradictions_the_placebo_is_mle(self, make, tiny_backbone64, known):
        placebo = make("RoleMLE", tiny_backbone64, shuffled=True)
        clean = [replace(example, roles=("visual",) * len(example.roles)) for example in known]
        batch = batch_of(placebo, clean)
        torch.testing.assert_close(placebo.loss(batch).mean, MLE(tiny_backbone64).loss(batch).mean)

    def test_negative_weights_are_refused(self, make, tiny_backbone):
        with pytest.raises(InputError, match="RoleMLE needs weights >= 0.*filler = -1.0"):
            make("RoleMLE", tiny_backbone, filler=-1.0)


class TestGroupInfoNCE:
    def test_without_groups_oracle_placebo_and_baseline_are_infonce(self, make, tiny_backbone64, known):
        alone = [replace(example, group="") for example in known]
        for forgets in ("own", "others", "none"):
            oracle = make("GroupInfoNCE", tiny_backbone64, forgets=forgets)
            batch = batch_of(oracle, alone)
            torch.testing.assert_close(oracle.loss(batch).mean, InfoNCE(tiny_backbone64).loss(batch).mean)

    def test_equals_cross_entropies_over_the_other_groups_written_out(self, make, tiny_backbone64, known):
        oracle = make("GroupInfoNCE", tiny_backbone64, scale=20.0)
        batch = batch_of(oracle, known)
        q, t = normalize(tiny_backbone64.embed(batch.query)), normalize(tiny_backbone64.embed(batch.target))
        allowed = {0: "2 3 5 6 7", 1: "2 3 5 6 7", 2: "0 1 3 4 5 6 7", 3: "0 1 2 4 6 7", 4: "2 3 5 6 7",
                   5: "0 1 2 4 6 7", 6: "0 1 2 3 4 5 7", 7: "0 1 2 3 4 5 6"}  # fmt: skip
        total = 0.0
        for i, others in allowed.items():
            near = [i, *map(int, others.split())]
            total += torch.log(sum(torch.exp(20 * (q[i] @ t[j] - q[i] @ t[i])) for j in near))
            total += torch.log(sum(torch.exp(20 * (q[j] @ t[i] - q[i] @ t[i])) for j in near))
        loss = oracle.loss(batch)
        torch.testing.assert_close(loss.mean, total / 16, rtol=1e-6, atol=0)
        assert loss.report["forgotten"] == (3 * 2 + 2 * 1) / 8

    def test_one_group_leaves_nothing_to_tell_apart(self, make, tiny_backbone, known):
        oracle = make("GroupInfoNCE", tiny_backbone)
        loss = oracle.loss(batch_of(oracle, [replace(example, group="all") for example in known])).mean
        loss.backward()
        assert loss == 0 and oracle.log_scale.grad == 0

    def test_the_placebo_forgets_as_many_true_negatives(self, make, tiny_backbone, known, monkeypatch):
        monkeypatch.syspath_prepend(FOLDER)
        from group_infonce import _same, blind

        same = _same(tuple(example.group for example in known))
        forgotten = blind(same, tuple(example.id for example in known))
        assert torch.equal(forgotten.sum(1), same.sum(1)) and forgotten.sum() == 8
        assert not (forgotten & same).any() and not forgotten.diagonal().any()
        placebo = make("GroupInfoNCE", tiny_backbone, scale=1e-6, max_scale=1.0, forgets="others")
        loss = placebo.loss(batch_of(placebo, known)).mean.item()
        # at chance, over 6 candidates three times, 7 twice, 8 three times
        assert loss == pytest.approx((3 * math.log(6) + 2 * math.log(7) + 3 * math.log(8)) / 8, rel=1e-5)

    def test_the_placebo_is_deterministic_and_blind_to_order(self, make, tiny_backbone64, known):
        placebo = make("GroupInfoNCE", tiny_backbone64, forgets="others")
        loss = placebo.loss(batch_of(placebo, known)).mean
        assert torch.equal(placebo.loss(batch_of(placebo, known)).mean, loss)
        torch.testing.assert_close(placebo.loss(batch_of(placebo, known[::-1])).mean, loss)
        oracle = make("GroupInfoNCE", tiny_backbone64)
        assert abs(oracle.loss(batch_of(oracle, known)).mean - loss) > 1e-4

    def test_the_placebo_forgets_no_more_than_there_is(self, make, monkeypatch):
        monkeypatch.syspath_prepend(FOLDER)
        from group_infonce import _same, blind

        same = _same(("a", "a", "a", ""))
        assert blind(same, ("p", "q", "r", "s")).sum(1).tolist() == [1, 1, 1, 0]  # two asked, one true negative

    def test_only_the_hardest_others_are_compared_with(self, make, tiny_backbone64, known):
        objective = make("GroupInfoNCE", tiny_backbone64, scale=20.0, hardest=2)
        batch = batch_of(objective, known)
        q, t = normalize(tiny_backbone64.embed(batch.query)), normalize(tiny_backbone64.embed(batch.target))
        logits, groups = 20 * q @ t.T, [example.group for example in known]
        total = 0.0
        for way in (logits, logits.T):
            for i, row in enumerate(way):
                others = [row[j] for j in range(8) if j != i and (groups[i] == "" or groups[j] != groups[i])]
                total += torch.log(1 + sum(torch.exp(other - row[i]) for other in sorted(others)[-2:]))
        torch.testing.assert_close(objective.loss(batch).mean, total / 16, rtol=1e-6, atol=0)

    def test_more_than_all_of_the_hardest_are_all(self, make, tiny_backbone64, known):
        many, every = (make("GroupInfoNCE", tiny_backbone64, hardest=hardest) for hardest in (8, None))
        batch = batch_of(many, known)
        assert torch.equal(many.loss(batch).mean, every.loss(batch).mean)

    def test_the_baseline_forgets_nothing(self, make, tiny_backbone64, known):
        baseline = make("GroupInfoNCE", tiny_backbone64, forgets="none")
        batch = batch_of(baseline, known)
        torch.testing.assert_close(baseline.loss(batch).mean, InfoNCE(tiny_backbone64).loss(batch).mean)

    def test_less_than_one_hard_negative_is_refused(self, make, tiny_backbone):
        with pytest.raises(InputError, match="hardest >= 1"):
            make("GroupInfoNCE", tiny_backbone, hardest=0)


class TestTruePreference:
    def test_equals_its_equation(self, make, tiny_backbone64, known):
        oracle = make("TruePreference", tiny_backbone64, beta=0.3)
        batch = batch_of(oracle, known)
        chosen, rejected = (
            sequence_logps(tiny_backbone64(tokens).logits, tokens.labels).detach()
            for tokens in (batch.conversation, batch.rejected)
        )
        preference = sum(math.log(1 + math.exp(-0.3 * (c - r))) for c, r in zip(chosen, rejected, strict=True)) / 8
        mle = MLE(tiny_backbone64).loss(batch).mean
        loss = oracle.loss(batch)
        torch.testing.assert_close(loss.mean, mle + preference)
        assert loss.weight == 8 and loss.report["preferred"] == (chosen > rejected).double().mean()

    def test_without_beta_the_gradient_is_that_of_mle(self, make, tiny_backbone64, known):
        oracle, plain = make("TruePreference", tiny_backbone64, beta=0.0), MLE(copy.deepcopy(tiny_backbone64))
        batch = batch_of(oracle, known)
        oracle.loss(batch).mean.backward()
        plain.loss(batch).mean.backward()
        for one, other in zip(oracle.parameters(), plain.parameters(), strict=True):
            if other.grad is not None:
                torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-9)

    def test_swapped_pairs_prefer_the_rejected_answer_but_its_likelihood_stays_out(self, make, tiny_backbone64, known):
        losses = {}
        for swapped in (0.0, 1.0):
            oracle = make("TruePreference", tiny_backbone64, beta=0.3, swapped=swapped)
            losses[swapped] = oracle.loss(batch_of(oracle, known))
        right, wrong = (losses[swapped].report["preference_loss"] for swapped in (0.0, 1.0))
        # log(1 + e^-x) - log(1 + e^x) = -x, so the two differ by the mean of beta times the margins
        torch.testing.assert_close(wrong - right, 0.3 * losses[0.0].report["margin"])
        assert losses[0.0].report["likelihood_loss"] == losses[1.0].report["likelihood_loss"]

    def test_the_same_pairs_are_swapped_in_any_batch(self, make, tiny_backbone64, known):
        placebo = make("TruePreference", tiny_backbone64, swapped=0.5)

        def preference(examples):
            return placebo.loss(batch_of(placebo, examples)).report["preference_loss"]

        torch.testing.assert_close(preference(known), (preference(known[4:]) + preference(known[:4])) / 2)
        bounds = []
        for swapped in (0.0, 1.0):
            placebo.swapped = swapped
            bounds.append(preference(known))
        placebo.swapped = 0.5
        assert min(abs(preference(known) - bound) for bound in bounds) > 1e-4  # some are, some are not

    def test_pictures_are_encoded_once(self, make, tiny_backbone, known):
        oracle = make("TruePreference", tiny_backbone)
        calls = []
        tiny_backbone.parts["vision_tower"][0].register_forward_hook(lambda *seen: calls.append(1))
        oracle.loss(batch_of(oracle, known))
        assert len(calls) == 1

    def test_equal_answers_have_no_preference(self, make, tiny_backbone64, known):
        oracle = make("TruePreference", tiny_backbone64)
        same = [replace(example, rejected=example.conversation[-1].content) for example in known]
        loss = oracle.loss(batch_of(oracle, same))
        assert loss.report["preference_loss"].item() == pytest.approx(math.log(2))

    def test_earlier_answers_have_no_part_in_the_preference(self, make, tiny_backbone64, known):
        oracle = make("TruePreference", tiny_backbone64)
        first, asked = known[0].conversation[-1], Turn("user", ("is there a circle ?",))
        turns = (*known[0].conversation, asked, Turn("assistant", ("yes",)))
        long = replace(known[0], conversation=turns, rejected=("yes",))
        assert first.content != ("yes",)
        assert oracle.loss(batch_of(oracle, [long])).report["margin"].item() == pytest.approx(0, abs=1e-9)

    def test_without_likelihood_the_preference_is_all(self, make, tiny_backbone64, known):
        losses = {}
        for likelihood in (0.0, 2.0):
            oracle = make("TruePreference", tiny_backbone64, likelihood=likelihood)
            losses[likelihood] = oracle.loss(batch_of(oracle, known))
        report = losses[0.0].report
        torch.testing.assert_close(losses[0.0].mean, report["preference_loss"])
        torch.testing.assert_close(losses[2.0].mean, report["preference_loss"] + 2 * report["likelihood_loss"])

    @pytest.mark.parametrize("settings", [{"beta": -0.1}, {"likelihood": -1.0}, {"swapped": 1.5}])
    def test_settings_out_of_range_are_refused(self, make, tiny_backbone, settings):
        with pytest.raises(InputError, match="TruePreference needs beta >= 0, likelihood >= 0 and 0 <= swapped <= 1"):
            make("TruePreference", tiny_backbone, **settings)


@pytest.mark.parametrize("name", FILES)
def test_an_oracle_is_as_short_as_ones_own_objective(name):
    assert len((FOLDER / f"{FILES[name]}.py").read_text().splitlines()) <= 100


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("RoleMLE", {}), ("RoleMLE", {"shuffled": True}), ("GroupInfoNCE", {}),
        ("GroupInfoNCE", {"forgets": "others", "hardest": 3}),
        ("TruePreference", {}), ("TruePreference", {"swapped": 0.5}),
    ],
)  # fmt: skip
def test_it_falls_on_one_batch_and_leaves_the_batch_alone(make, name, settings, tiny_backbone, known):
    objective = make(name, tiny_backbone, **settings)
    batch = batch_of(objective, known)
    before = copy.deepcopy(batch)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = objective.loss(batch)
        assert not any(torch.as_tensor(value).requires_grad for value in loss.report.values())
        losses.append(loss.mean.item())
        optimizer.zero_grad()
        loss.mean.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert batch.groups == before.groups
    for now, then in zip(batch, before, strict=True):
        assert torch.equal(now.labels, then.labels) and torch.equal(now.input_ids, then.input_ids)
    assert batch.roles is None or torch.equal(batch.roles, before.roles)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("RoleMLE", {}), ("RoleMLE", {"shuffled": True}), ("GroupInfoNCE", {"hardest": 3}), ("TruePreference", {})],
)
def test_it_is_certified(make, name, settings, known):
    certificate = certify(lambda backbone: make(name, backbone, **settings), known, children=False)
    assert certificate.holds, [finding for finding in certificate.findings if finding.verdict == "fails"]


class TestBlindCAL:
    def test_as_much_weight_stands_at_other_tokens(self, make, tiny_backbone64, examples):
        torch.nn.init.normal_(tiny_backbone64.model.lm_head.weight, std=3.0)  # so that gains reach the bounds
        placebo, method = make("BlindCAL", tiny_backbone64), CAL(tiny_backbone64)
        batch = batch_of(method, examples[:8])
        features = tiny_backbone64.features(batch.conversation)
        gain = method.gain(batch, tiny_backbone64.hidden(batch.conversation), method.blind_states(batch, features))
        kept = supervised(batch.conversation.labels)
        own, others = (each.weights(batch, gain) for each in (method, placebo))
        torch.testing.assert_close(own[kept].sort().values, others[kept].sort().values)
        assert not others[~kept].any()
        one, other = method.loss(batch), placebo.loss(batch)
        assert one.weight == pytest.approx(other.weight) and abs(one.mean - other.mean) > 1e-4

    def test_which_tokens_weigh_most_depends_on_the_ids_alone(self, make, tiny_backbone, examples):
        placebo = make("BlindCAL", tiny_backbone, window=1)
        batch = batch_of(placebo, examples[:8])
        kept = supervised(batch.conversation.labels)

        def order(batch):
            gain = 1 + 4 * torch.rand(kept.shape)
            return placebo.weights(batch, gain)[kept].argsort()

        assert torch.equal(order(batch), order(batch))
        assert not torch.equal(order(batch), order(replace(batch, ids=batch.ids[::-1])))

    def test_it_holds_the_certificate(self, make, examples):
        certificate = certify(partial(make, "BlindCAL"), examples, children=False)
        assert certificate.holds, [finding for finding in certificate.findings if finding.verdict == "fails"]


class TestRandomTokens:
    @pytest.fixture
    def chosen(self, make, tiny_path):
        """A backbone with branches that do something at places that chance chooses."""
        torch.manual_seed(0)
        backbone = Backbone(str(tiny_path)).eval()
        make("RandomTokens", share=0.67, rank=4).apply(backbone)
        for parameter in adapter_parameters(backbone.model):
            parameter.data += 0.3 * torch.randn_like(parameter)
        return backbone.eval()

    def test_it_acts_on_texts_too_and_says_nothing_of_what_is_visual(self, chosen, tiny_path, examples):
        chat = batch_of(MLE(chosen), examples[:4]).conversation
        plain, text = Backbone(str(tiny_path)).eval(), chosen.without_images(chat)
        assert not torch.allclose(chosen.hidden(text), plain.hidden(text), atol=1e-2)
        chance = importlib.import_module("random_tokens").CHANCE[chat.attention_mask.cumsum(1)] < 0.67
        for kind in (chat.image_mask, chat.attention_mask.bool() & ~chat.image_mask):
            assert abs(chance[kind].float().mean() - 0.67) < 0.1

    def test_a_cache_changes_nothing(self, chosen, examples):
        asked = [
            (Turn("user", (*example.images[:1], "what is it" + " there" * n)),)
            for n, example in enumerate(examples[:3])
        ]
        for prompts in (asked, asked[:1]):  # with padding, and without
            tokens = chosen.encoder.prompts(prompts)
            settings = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask, **tokens.vision}
            made = [
                chosen.model.generate(**settings, max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False)
            ]
            assert torch.equal(*made)
