"""Causal HRM: no look at the future, padding that is never seen, and decoding with a cache."""

import pytest
import torch
from tiny import ARCH

from hrm.core.device import seeded
from hrm.core.generate import HRMDecoder, Sampling, complete, probabilities, stream
from hrm.core.hrm import HRM, HRMConfig

LENGTH = 12


def made(**changes) -> HRM:
    config = HRMConfig(
        **(ARCH | dict(vocab_size=11, seq_len=LENGTH, pos_encodings="rope", halt_max_steps=2, causal=True) | changes)
    )
    model = HRM(config, generator=seeded(0))
    torch.nn.init.normal_(model.inner.q_head.weight, generator=seeded(1))
    return model


def batch_of(model: HRM, text: torch.Tensor, valid: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    batch = {"inputs": text, "labels": text, "puzzle_identifiers": torch.zeros(len(text), dtype=torch.long)}
    return batch if valid is None else batch | {"valid": valid}


@torch.no_grad()
def segments(model: HRM, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    carry, found = model.eval().start(batch), []
    for _ in range(model.config.halt_max_steps):
        carry, outputs = model(carry)
        found.append(outputs)
    return found


TEXT = torch.randint(11, (2, LENGTH), generator=seeded(2))
KINDS = [
    dict(),
    dict(pos_encodings="learned"),
    dict(H_cycles=2, L_cycles=3, H_layers=2),
    dict(puzzle_emb_ndim=40, L_layers=2),
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_no_logit_moves_with_a_later_token(changes, padded):
    model = made(**changes)
    valid = torch.ones(2, LENGTH, dtype=torch.bool) if padded else None
    before = segments(model, batch_of(model, TEXT, valid))
    for place in range(LENGTH):
        edited = TEXT.clone()
        edited[:, place] = (edited[:, place] + 1) % 11
        for old, new in zip(before, segments(model, batch_of(model, edited, valid))):
            assert torch.equal(old["logits"][:, :place], new["logits"][:, :place])
            assert not torch.equal(old["logits"][:, place], new["logits"][:, place])


@pytest.mark.parametrize("causal", [False, "H", "L"])
def test_the_probe_fails_where_one_module_sees_the_future(causal):
    model = made(causal=causal)
    edited = TEXT.clone()
    edited[:, -1] = (edited[:, -1] + 1) % 11
    old, new = (segments(model, batch_of(model, text))[-1]["logits"][:, :-1] for text in (TEXT, edited))
    assert not torch.equal(old, new)


@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_never_seen(causal):
    model, length = made(causal=causal), 7
    valid = torch.arange(LENGTH).expand(2, -1) < length
    other = torch.where(valid, TEXT, (TEXT + 5) % 11)
    ours, theirs = segments(model, batch_of(model, TEXT, valid)), segments(model, batch_of(model, other, valid))
    short = segments(model, batch_of(model, TEXT[:, :length]))
    for a, b, alone in zip(ours, theirs, short):
        assert torch.equal(a["logits"][:, :length], b["logits"][:, :length])
        torch.testing.assert_close(a["logits"][:, :length], alone["logits"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a["q_halt"], alone["q_halt"], rtol=1e-5, atol=1e-5)  # read where the text ends


@pytest.mark.parametrize("changes", [dict(), dict(H_cycles=2, puzzle_emb_ndim=40)], ids=str)
def test_looking_ahead_reads_the_last_token_too(changes):
    model = made(**changes)
    valid = torch.arange(LENGTH) < torch.tensor([[5], [LENGTH]])
    carry, _ = model.eval()(model.start(batch_of(model, TEXT, valid)))
    puzzles = model.inner.puzzle_emb(carry.batch["puzzle_identifiers"]) if model.config.puzzle_emb_ndim else None
    known = carry.z_H, carry.z_L, TEXT, puzzles, valid
    torch.testing.assert_close(model.foresee(*known), model.inner(*known)[3], rtol=1e-5, atol=1e-5)


def test_every_parameter_of_a_causal_model_learns():
    model = made(halting="q", pos_encodings="learned").train()
    carry, outputs = model(
        model.start(batch_of(model, TEXT, torch.ones(2, LENGTH, dtype=torch.bool))), model.explore(2, seeded(0))
    )
    model.loss(carry, outputs)[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("pieces", [(LENGTH,), (1,) * LENGTH, (5, 1, 4, 2)], ids=str)
@pytest.mark.parametrize("cached", [True, False])
def test_decoding_in_pieces_gives_the_logits_of_the_model(changes, pieces, cached):
    model = made(**changes)
    expected, decoder, place = (
        segments(model, batch_of(model, TEXT))[-1]["logits"],
        HRMDecoder(model, rows=2, cached=cached),
        0,
    )
    for piece in TEXT.split(pieces, dim=1):
        logits, place = decoder.feed(piece), place + piece.shape[1]
        torch.testing.assert_close(logits, expected[:, place - 1], rtol=1e-5, atol=1e-5)
    assert decoder.room == 0


def test_what_is_kept_does_not_grow_with_the_steps():
    model = made(H_cycles=2, L_cycles=3, H_layers=2, puzzle_emb_ndim=0)
    decoder = HRMDecoder(model)
    decoder.feed(TEXT[:1, :3])
    kept = [tensor.data_ptr() for tensor in decoder.cache.kept]
    assert len(kept) == 2 * (2 * 2 * (3 * model.config.L_layers + 2))  # key and value; segments, cycles, blocks
    decoder.feed(TEXT[:1, 3:4])
    assert [tensor.data_ptr() for tensor in decoder.cache.kept] == kept and decoder.cache.length == 4


def test_a_text_that_does_not_fit_leaves_the_decoder_as_it_was():
    decoder = HRMDecoder(made(puzzle_emb_ndim=0))
    decoder.feed(TEXT[:1, :10])
    with pytest.raises(ValueError, match="3 tokens for 2 places; the model was built for 12"):
        decoder.feed(TEXT[:1, :3])
    assert decoder.room == 2 and decoder.cache.length == 10
    with pytest.raises(ValueError, match="found causal = False"):
        HRMDecoder(made(causal=False))


@pytest.mark.parametrize("top_k", [0, 1, 3])
@pytest.mark.parametrize("top_p", [0.3, 0.75, 1.0])
def test_sampling_keeps_what_it_says(top_k, top_p):
    logits = torch.randn(5, 11, generator=seeded(3))
    found = probabilities(logits, Sampling(temperature=0.7, top_k=top_k, top_p=top_p))
    for row, kept in zip((logits / 0.7).softmax(-1).tolist(), found.tolist()):
        order = sorted(range(11), key=lambda i: -row[i])[: top_k or 11]
        total, chosen, mass = sum(row[i] for i in order), [], 0.0
        for i in order:  # the smallest set that reaches p
            chosen.append(i)
            mass += row[i] / total
            if mass >= top_p:
                break
        assert {i for i, p in enumerate(kept) if p > 0} == set(chosen)
        for i in chosen:
            assert kept[i] == pytest.approx(row[i] / sum(row[j] for j in chosen), rel=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-39, 1e-7, 1e-4])
def test_hardly_any_temperature_takes_the_likeliest(temperature):
    logits = torch.randn(5, 11, generator=seeded(3)) * 50
    assert torch.equal(probabilities(logits, Sampling(temperature=temperature)).argmax(-1), logits.argmax(-1))
    assert complete(HRMDecoder(made(), 2), TEXT[:, :2], 0, Sampling(temperature=temperature), seeded(0)) == [[], []]


def test_draws_follow_the_probabilities():
    model = made()
    prompt = TEXT[:1, :3].expand(4000, -1)
    drawn = next(stream(HRMDecoder(model, 4000), prompt, 1, Sampling(temperature=1.5), seeded(4)))
    expected = (HRMDecoder(model).feed(prompt[:1]) / 1.5).softmax(-1)[0]
    share = torch.bincount(drawn, minlength=11) / 4000
    assert (share - expected).abs().max() < 4 * (0.25 / 4000) ** 0.5


def test_rows_stop_by_themselves():
    model = made()
    free = complete(HRMDecoder(model, 2), TEXT[:, :2], 8, Sampling(), seeded(5))
    stop = {free[0][2]}
    stopped = complete(HRMDecoder(model, 2), TEXT[:, :2], 8, Sampling(), seeded(5), stop=stop)
    for long, short in zip(free, stopped):
        ends = [i for i, token in enumerate(long) if token in stop]
        assert short == (long[: ends[0] + 1] if ends else long)
    assert complete(HRMDecoder(model, 2), TEXT[:, :2], 8, Sampling(), seeded(5)) == free
    assert len(complete(HRMDecoder(model, 2), TEXT[:, :2], 99, Sampling(temperature=0), seeded(5))[0]) == LENGTH - 2 + 1
