"""Forwards in the style of public transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from forwards.table import BRANCH, FLAT, IMAGE, TEXT, Call, act, change, dense, entry, flat, rows
from torch import Tensor, nn


@dataclass
class GPTConfig:
    n_embd: int = 8
    n_head: int = 2
    block_size: int = 4
    dropout: float = 0.1


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.act, self.n_head, self.n_embd = act(), config.n_head, config.n_embd
        mask = torch.tril(torch.ones(4, 4)).view(1, 1, 4, 4)
        self.register_buffer("bias", mask)
        self.attn_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k, q, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (k, q, v))
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        return self.c_proj(self.act(y.transpose(1, 2).contiguous().view(B, T, C)))


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn, self.mlp = CausalSelfAttention(config), nn.Sequential(dense(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


@entry(
    TEXT,
    Call(lambda n: (torch.arange(n * 4).reshape(n, 4) % 16,) * 2),
    kept={"": BRANCH},
)
class NanoGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = GPTConfig()
        self.transformer = nn.ModuleDict(
            dict(
                wte=nn.Embedding(16, 8),
                wpe=nn.Embedding(4, 8),
                h=nn.ModuleList([Block(self.config) for _ in range(2)]),
                ln_f=nn.LayerNorm(8),
            )
        )
        self.lm_head = nn.Linear(8, 16, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Any:
        device = idx.device
        _, t = idx.size()
        assert t <= self.config.block_size, f"{t} is more than {self.config.block_size}"
        pos = torch.arange(0, t, dtype=torch.long, device=device)
        x = self.transformer.wte(idx) + self.transformer.wpe(pos)
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            loss = F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        else:
            logits, loss = self.lm_head(x[:, [-1], :]), None
        return logits, loss


@entry(IMAGE, changes=(change("pool", "mean"),))
class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.pool = nn.Conv2d(3, 8, 4, stride=4), "cls"
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.pos_embedding = nn.Parameter(torch.randn(1, 9, 8))
        self.blocks = nn.Sequential(Block(GPTConfig(dropout=0.0)))
        self.blocks[0].attn.bias = torch.ones(1, 1, 5, 5)

    def forward(self, img: Tensor) -> Tensor:
        x = self.patch(img).flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = self.blocks(x + self.pos_embedding[:, : (n + 1)])
        return x.mean(dim=1) if self.pool == "mean" else x[:, 0]


class HFConfig:
    model_type = "tiny"

    def __init__(self) -> None:
        self.return_dict, self.output_hidden_states, self.torchscript = True, False, False

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict and not self.torchscript


@dataclass
class ModelOutput:
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


def hf_change(name: str, value: Any) -> Callable[[Any], None]:
    return lambda model: setattr(model.config, name, value)


@entry(
    FLAT,
    Call(lambda n: (flat(n),), {"output_hidden_states": True}),
    Call(lambda n: (flat(n), flat(n)), {"return_dict": False}),
    changes=(hf_change("return_dict", False), hf_change("output_hidden_states", True)),
)
class HuggingFace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.layer = HFConfig(), nn.ModuleList([dense(), dense()])

    def forward(
        self,
        x: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        output_hidden_states = (
            output_hidden_states
            if output_hidden_states is not None
            else self.config.output_hidden_states
        )
        return_dict = return_dict if return_dict is not None else self.config.use_return_dict
        all_states: Any = () if output_hidden_states else None
        if attention_mask is not None:
            x = x * attention_mask
        for layer in self.layer:
            if output_hidden_states:
                all_states = (*all_states, x)
            x = layer(x)
        if not return_dict:
            return tuple(v for v in [x, all_states] if v is not None)
        return ModelOutput(x, all_states)


def window_partition(x: Tensor, window: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, c)


@entry(Call(lambda n: (rows(n, 8, 8, 3),)), changes=(change("shift", 1), change("shift", 0)))
class SwinBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.window, self.shift, self.proj = 4, 2, nn.Sequential(nn.Linear(3, 3), act())

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        if self.shift > 0:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        windows = self.proj(window_partition(x, self.window))
        x = windows.view(b, h // self.window, w // self.window, self.window, self.window, c)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift > 0 else x


def drop_path(x: Tensor, drop_prob: float = 0.0, training: bool = False) -> Tensor:
    if drop_prob == 0.0 or not training:
        return x
    keep = 1 - drop_prob
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    mask = x.new_empty(shape).bernoulli_(keep)
    if keep > 0.0:
        mask.div_(keep)
    return x * mask


class DropPath(nn.Module):
    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training)


@entry(FLAT, changes=(lambda m: setattr(m.drop_path, "drop_prob", 0.9),))
class StochasticDepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop_path, self.out = dense(), DropPath(0.5), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.drop_path(self.body(x)))


@entry(FLAT, Call(lambda n: (flat(n), flat(n))), Call(lambda n: (), {"x": flat, "mask": flat}))
class Timm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.global_pool = dense(), nn.Linear(8, 3), ""

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.body(x)
        return x if mask is None else x * mask

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x if not self.global_pool else x.mean(1, keepdim=True)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(x, mask=mask))


@entry(Call(lambda n: (rows(n, 4, 8),)), Call(lambda n: (rows(n, 4, 8), rows(n, 3, 8))))
class EinsumAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.act = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), act()
        self.scale = 8**-0.5

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        sim = torch.einsum("bid,bjd->bij", self.q(x), self.k(context)) * self.scale
        return self.act(torch.einsum("bij,bjd->bid", sim.softmax(-1), self.v(context)))


@entry(Call(lambda n: (rows(n, 4, 8),)), Call(lambda n: (rows(n, 6, 8),)))
class PositionalEncoding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pe", torch.linspace(-1, 1, 80).view(1, 10, 8), persistent=False)
        self.dropout, self.act = nn.Dropout(0.1), act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.dropout(x + self.pe[:, : x.size(1)].requires_grad_(False)))


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(8, 3), nn.ModuleList([dense() for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if rows.numel() > 0:
                out[rows] = expert(x[rows]) * weights[rows, None]
        return out


@entry(FLAT, kept={"moe": BRANCH})
class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.moe = dense(), Router()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(self.stem(x))
