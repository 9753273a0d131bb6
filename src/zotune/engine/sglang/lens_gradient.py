"""Gradients by the lens (see `engine.torch.lens_gradient`) from what SGLang's passes leave behind (`visits.py`).

The head and the last norm are differentiated at those tokens; from there gradients go back block by block, each
computed again for them from its own weights, over the keys and values of the pass. A rank of a tensor-parallel group
has a part of each product's weights, and the ranks add up what each finds. SGLang's kernels pass no gradients, so what
is differentiated is written out here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from zotune.adapter.forms import lora_matrices
from zotune.adapter.peft_rules import rank_and_scaling
from zotune.adapter.spec import LoraSpec, tensor_name
from zotune.engine.sglang.jobs import Passes, VisitedTokens
from zotune.engine.sglang.slots import Slots
from zotune.engine.sglang.visits import FORMS, Seen, Watch
from zotune.errors import InputError
from zotune.zo.protocol import Theta

NAMES = (
    "sglang.srt.distributed.communication_op:tensor_model_parallel_all_reduce",
    "sglang.srt.distributed.communication_op:tensor_model_parallel_all_gather",
    "sglang.srt.layers.layernorm:RMSNorm.forward_native",
    "sglang.srt.layers.activation:SiluAndMul.forward_native",
    "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding.forward_native",
    "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.get_kv_buffer",
)
ROWS = 256  # whose logits are in memory at a time
SAME = 0.02  # how far what is computed again may be from what SGLang computed, relatively
Adapters = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""By module, this rank's columns of A [rank, inputs], and B [outputs, rank]."""


class LensGradient:
    """Of one rank.

    Args:
        model, runner: SGLang's.
        slots: where its adapters lie.
    """

    def __init__(self, model: nn.Module, runner: Any, slots: Slots, spec: LoraSpec) -> None:
        self.slots, self.spec = slots, spec
        self.form = form = FORMS[type(model).__name__]
        blocks: Any = model.get_submodule(form.blocks)
        self.blocks = list(blocks)
        self.last_norm = model.get_submodule(form.last_norm)
        self.head = _base(model.lm_head)
        self.device = next(self.last_norm.parameters()).device
        self.modules: dict[int, list[str]] = {}  # by block
        for module in {module_of(name): None for name in slots.places}:
            block, _, within = module.removeprefix(f"{form.blocks}.").partition(".")
            assert within in (form.attention_output, form.down), "others are refused before"
            self.modules.setdefault(int(block), []).append(module)
        self.watch = Watch(form, self.blocks, self.last_norm, runner)
        self._checked = False

    def gradient(self, theta: Theta, cotangents: np.ndarray) -> Passes[dict[str, np.ndarray]]:
        """Of sum(cotangents * log_probs) for what is trained of A and B, at the theta of the passes that were watched.

        Args:
            cotangents: [example, candidate].

        Raises:
            InputError: SGLang's passes are not of the form that the way back has.
        """
        found = {name: np.zeros(shape, dtype=np.float32) for name, shape in self.slots.shapes.items()}
        watched, self.watch.seen = self.watch.seen, []
        for seen in watched:
            steps = self._modules(seen, cotangents, self._adapters(theta), found)
            while True:
                with torch.inference_mode(False), torch.enable_grad():
                    if next(steps, "end") == "end":
                        break
                yield
        return found

    def _modules(
        self, seen: Seen, cotangents: np.ndarray, adapters: Adapters, found: dict[str, np.ndarray]
    ) -> Iterator[None]:
        """Add what a batch gives to the gradients that are found, module by module."""
        seen = _outside_inference(seen)
        self._check(seen, adapters)
        for module, of_output, inputs in self._back(seen, self._at_the_top(seen, cotangents), adapters):
            scaling, (a, b) = rank_and_scaling(module, self.spec)[1], adapters[module]
            key_a, key_b = tensor_name(module, "A"), tensor_name(module, "B")
            low = self._whole(key_a, inputs @ a.T)
            found[key_b] += scaling * (of_output.T @ low).cpu().numpy()
            if key_a in found:
                own = self.slots.in_all_columns(key_a, (of_output @ b).T @ inputs)
                found[key_a] += scaling * self._whole(key_a, own).cpu().numpy()
            yield

    def _adapters(self, theta: Theta) -> Adapters:
        matrices, adapters = lora_matrices(theta, self.spec), {}
        for module in (module for modules in self.modules.values() for module in modules):
            key_a, key_b = tensor_name(module, "A"), tensor_name(module, "B")
            a, b = self.slots.columns_of(key_a, matrices[key_a]), matrices[key_b].copy()
            adapters[module] = torch.from_numpy(a).to(self.device), torch.from_numpy(b).to(self.device)
        return adapters

    def _whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Of what each rank makes with its columns of a matrix A, the sum."""
        return _sum(part) if self.slots.is_divided(name) else part

    # ---- the top ---------------------------------------------------------------------------------------------------

    def _at_the_top(self, seen: Seen, cotangents: np.ndarray) -> torch.Tensor:
        """Gradients at the last residual states [n, width]."""
        assert seen.last is not None
        tokens = _tokens(seen)
        found = []
        for first in range(0, len(tokens), ROWS):
            state = seen.last[first : first + ROWS].detach().requires_grad_()
            normed = _native(self.last_norm, state)
            at_head = self._of_head(normed.detach(), tokens[first : first + ROWS], cotangents)
            found.append(torch.autograd.grad(normed, state, at_head)[0].float())
        return torch.cat(found)

    @torch.no_grad()
    def _of_head(
        self, normed: torch.Tensor, tokens: Sequence[tuple[VisitedTokens, int] | None], cotangents: np.ndarray
    ) -> torch.Tensor:
        """The gradient of sum(cotangents * log_probs) at what goes into the head [n, width]."""
        logits, normalizers, begin = self._logits(normed)
        totals, where, weights = torch.zeros(len(tokens)), [], []
        for number, token_of in enumerate(tokens):
            if token_of is None:
                continue
            row = token_of[0].job.row
            assert row is not None
            for candidate, position, token in row.targets:
                if position == token_of[1] - row.first_scored:
                    weight = float(cotangents[row.example, candidate])
                    totals[number] += weight
                    if 0 <= token - begin < logits.shape[1]:
                        where.append((number, token - begin))
                        weights.append(weight)
        by_logit = -totals.to(logits)[:, None] * (logits - normalizers).exp()
        indices = torch.tensor(where, dtype=torch.long, device=logits.device).view(-1, 2).unbind(dim=1)
        by_logit.index_put_(indices, torch.tensor(weights).to(by_logit), accumulate=True)
        matrix = self.head.weight[: logits.shape[1]]
        return _sum((by_logit.to(matrix.dtype) @ matrix).float()).to(normed.dtype)

    def _logits(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Of this rank's part of the vocabulary [n, tokens], their normalisers over all of it [n, 1], and the part's
        first token."""
        own = self.head.shard_indices
        begin, end = own.org_vocab_start_index, own.org_vocab_end_index
        logits = functional.linear(normed, self.head.weight[: end - begin]).float()
        return logits, _gathered(logits.logsumexp(dim=1, keepdim=True)).logsumexp(dim=1, keepdim=True), begin

    # ---- the way back ----------------------------------------------------------------------------------------------

    def _back(
        self, seen: Seen, gradient: torch.Tensor, adapters: Adapters
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """The gradients at the outputs of the modules [n, outputs] and this rank's part of their inputs [n, inputs], in
        float32, from the last one down."""
        filling = seen.filling
        for index in range(len(self.blocks) - 1, min(self.modules) - 1, -1):
            parts = (
                (self.form.down, seen.before_feed[index], lambda state, index=index: self._hidden(index, state)),
                (self.form.attention_output, seen.before_attention[index],
                 lambda state, index=index: self._attended(index, state, seen)),
            )  # fmt: skip
            for output, state, compute in parts:
                name, state = self._name(index, output), state.requires_grad_()
                hidden = compute(state)
                if name in adapters:
                    yield name, gradient, hidden.detach().float()
                of_hidden = self._through_output(name, index, output, gradient.to(hidden.dtype), adapters)
                (found,) = torch.autograd.grad(hidden, state, of_hidden)
                # Keys and values of filling are those of the tokens that it repeats.
                gradient = (gradient + _sum(found.float())).masked_fill(filling, 0.0)

    def _name(self, index: int, module: str) -> str:
        return f"{self.form.blocks}.{index}.{module}"

    def _hidden(self, index: int, state: torch.Tensor) -> torch.Tensor:
        """What goes into the last module of a feed-forward part, this rank's part of it [n, inputs]."""
        form, block = self.form, self.blocks[index]
        normed, up = _native(block.get_submodule(form.feed_norm), state), _base(block.get_submodule(form.up))
        return _native(block.get_submodule(form.activation), functional.linear(normed, up.weight, up.bias))

    def _attended(self, index: int, state: torch.Tensor, seen: Seen) -> torch.Tensor:
        """What goes into the last module of an attention, this rank's part of it [n, inputs]."""
        attention: Any = self.blocks[index].get_submodule(self.form.attention)
        normed = _native(self.blocks[index].get_submodule(self.form.attention_norm), state)
        projection, layer = _base(attention.qkv_proj), attention.attn
        heads, kv_heads, size = layer.tp_q_head_num, layer.tp_k_head_num, layer.head_dim
        qkv = functional.linear(normed, projection.weight, projection.bias)
        query, key, value = qkv.split([heads * size, kv_heads * size, kv_heads * size], dim=1)
        if hasattr(attention, "q_norm"):
            query = _native(attention.q_norm, query.reshape(-1, size)).view(len(query), -1)
            key = _native(attention.k_norm, key.reshape(-1, size)).view(len(key), -1)
        if hasattr(attention, "rotary_emb"):
            query, key = attention.rotary_emb.forward_native(seen.positions.flatten(), query, key)
        keys, values = (
            all_of.index_put((torch.arange(len(all_of), device=self.device)[:, None], seen.positions),
                             own.reshape(*seen.positions.shape, kv_heads, size).to(all_of.dtype)).transpose(1, 2)
            for all_of, own in zip(seen.kv[index], (key, value), strict=True)
        )  # fmt: skip
        visible = torch.arange(keys.shape[2], device=self.device) <= seen.positions[..., None]
        mask = torch.where(visible, 0.0, -torch.inf)[:, None, None]
        # [rows, kv heads, heads a kv head, tokens, size]
        asked = query.reshape(*seen.positions.shape, kv_heads, heads // kv_heads, size).permute(0, 2, 3, 1, 4)
        weights = torch.softmax((asked @ keys[:, :, None].transpose(3, 4)).float() * layer.scaling + mask, dim=-1)
        output = weights.to(values.dtype) @ values[:, :, None]
        return output.permute(0, 3, 1, 2, 4).reshape(len(state), heads * size)

    def _through_output(
        self, name: str, index: int, output: str, gradient: torch.Tensor, adapters: Adapters
    ) -> torch.Tensor:
        """From the output of a part's last module, with its adapter, to this rank's part of its inputs."""
        found = gradient @ _base(self.blocks[index].get_submodule(output)).weight
        if name in adapters:
            a, b = (matrix.to(found.dtype) for matrix in adapters[name])
            found = found + rank_and_scaling(name, self.spec)[1] * (gradient @ b) @ a
        return found

    # ---- what is taken for granted ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _check(self, seen: Seen, adapters: Adapters) -> None:
        """Once, that blocks and head are what the way back takes them for."""
        if self._checked:
            return
        assert seen.last is not None
        self._checked, form = True, self.form
        after = {**seen.before_attention, len(self.blocks): seen.last}
        for index in range(len(self.blocks)):
            attended = self._attended(index, seen.before_attention[index], seen)
            hidden = self._hidden(index, seen.before_feed[index])
            for what, inputs, output, first, second in (
                ("attention", attended, form.attention_output, seen.before_attention[index], seen.before_feed[index]),
                ("feed-forward part", hidden, form.down, seen.before_feed[index], after[index + 1]),
            ):
                if not self._gives(self._name(index, output), index, output, inputs, first, second, adapters):
                    raise InputError(f"--estimator lens: SGLang's {what} is not the one it takes; use --engine torch")
        logits, normalizers, begin = self._logits(_native(self.last_norm, seen.last))
        pairs = [
            (float(logits[number, token - begin] - normalizers[number, 0]),
             job.log_probs[position - job.row.first_scored][column])
            for number, (job, position) in enumerate((of[0].job, of[1]) if of else (None, 0) for of in _tokens(seen))
            if job is not None and job.row is not None and position >= job.row.first_scored
            for column, token in enumerate(job.token_ids) if 0 <= token - begin < logits.shape[1]
        ]  # fmt: skip
        again, given = torch.tensor(pairs).view(-1, 2).unbind(dim=1)
        rounding = torch.finfo(seen.last.dtype).eps * float(logits.abs().max())
        if len(again) and (again - given).abs().mean() > SAME * given.abs().mean() + rounding:
            raise InputError("--estimator lens: SGLang's head is not the one it takes; use --engine torch")

    def _gives(
        self, name: str, index: int, output: str, inputs: torch.Tensor, before: torch.Tensor, after: torch.Tensor,
        adapters: Adapters,
    ) -> bool:  # fmt: skip
        """Whether a part's last module, of these inputs, adds what lies between two states."""
        module = _base(self.blocks[index].get_submodule(output))
        found = functional.linear(inputs, module.weight).float()
        if name in adapters:
            a, b = adapters[name]
            found += rank_and_scaling(name, self.spec)[1] * (inputs.float() @ a.T) @ b.T
        found = _sum(found) + (0.0 if module.bias is None else module.bias.float())
        added = (after - before).float()
        rounding = torch.finfo(after.dtype).eps * after.float().norm()
        return bool((found - added).norm() <= SAME * added.norm() + rounding)


def module_of(name: str) -> str:
    """The module of a tensor in PEFT's files."""
    return name.removeprefix("base_model.model.").rpartition(".lora_")[0]


def _tokens(seen: Seen) -> list[tuple[VisitedTokens, int] | None]:
    """Of each row, its tokens, each with its position; None: filling."""
    width = seen.positions.shape[1]
    found: list[tuple[VisitedTokens, int] | None] = []
    for row in seen.rows:
        found += [(row, position) for position in row.positions]
        found += [None] * (width - len(row.positions))
    return found


def _base(module: Any) -> Any:
    """A linear layer itself, which SGLang may have wrapped for its adapters."""
    return getattr(module, "base_layer", module)


def _native(module: Any, inputs: torch.Tensor) -> torch.Tensor:
    """What a module of SGLang's gives by PyTorch's own operations, which can be differentiated."""
    output: torch.Tensor = getattr(module, "forward_native", module)(inputs)
    return output


def _outside_inference(seen: Seen) -> Seen:
    """Copies that can be differentiated by."""
    assert seen.last is not None
    kv = {index: (keys.clone(), values.clone()) for index, (keys, values) in seen.kv.items()}
    return replace(
        seen, positions=seen.positions.clone(), before_attention=_clones(seen.before_attention),
        before_feed=_clones(seen.before_feed), kv=kv, last=seen.last.clone(),
    )  # fmt: skip


def _clones(tensors: Mapping[Any, torch.Tensor]) -> dict[Any, torch.Tensor]:
    return {key: value.clone() for key, value in tensors.items()}


def _sum(part: torch.Tensor) -> torch.Tensor:
    """Over the ranks."""
    from sglang.srt.distributed.communication_op import tensor_model_parallel_all_reduce

    return tensor_model_parallel_all_reduce(part.contiguous())


def _gathered(part: torch.Tensor) -> torch.Tensor:
    """The ranks' parts side by side."""
    from sglang.srt.distributed.communication_op import tensor_model_parallel_all_gather

    return tensor_model_parallel_all_gather(part)
