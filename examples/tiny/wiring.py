"""The weights before the first step. Heads that look up what stands in the prompt are wired in.

A model of this size sees too few tokens to grow them by itself: without, it copies by position only
and still guesses at every look-up after 15M tokens. Two kinds of heads make one (Olsson et al.
2022, "In-context Learning and Induction Heads"): those of the first layer bring each token the
ones just before it; those of later layers find where the present token stood before, by matching
it with what was brought, and copy what stands there. They are a start, and learn on like the rest.
"""

import torch
from torch import Tensor, nn

FAST = 6
MATCHED = 32  # dimensions of a token that are brought along and compared
TOKEN, COMMON, FINAL_NORM = 0.3, 2.8, 0.05  # together they start the logits below 10
BACK = (1, 2, 3, 4)  # how many tokens back each head of the first layer looks
# By layer, for "key value", "key: value", "key has the value" and "key is in the value"; with 3
# asked, for answers that give the value alone, where the key came before a "?" and the markup.
LOOK_UPS = {1: [(0, 1), (3, 1), (1, 2), (3, 2)], 3: [(2, 3), (2, 3), (3, 4), (3, 4)]}
SHARP, MATCH, REST = 1.1, 2.0, 0.3


class Wiring:
    """`heads`, `kv_heads`, `size` (of a head) and `theta` (of the rotary embedding) of a Llama."""

    def __init__(self, hidden: int, heads: int, kv_heads: int, size: int, theta: float) -> None:
        self.hidden, self.heads, self.kv_heads, self.size = hidden, heads, kv_heads, size
        basis = torch.linalg.qr(torch.randn(hidden, hidden))[0].T
        self.common, self.read, *self.brought = basis[: 1 + MATCHED * (1 + len(BACK))].split(
            [1, *[MATCHED] * (1 + len(BACK))]
        )
        half = size // 2
        self.angles = theta ** (-torch.arange(half) / half)
        quarter = half // 2
        self.fast = torch.arange(FAST)  # planes that turn far from token to token
        self.slow = torch.cat((torch.arange(quarter, half), torch.arange(half + quarter, size)))

    def embed(self, weight: Tensor, twins: list[tuple[int, int]]) -> None:
        """A token and its twin with a space begin alike; all share one direction."""
        nn.init.normal_(weight, std=TOKEN)
        bare, spaced = torch.tensor(twins).T
        weight[spaced] = (weight[bare] + torch.randn(self.hidden) * TOKEN) / 2**0.5
        weight.add_(self.common * COMMON)

    def bring(self, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> None:
        """Head h attends about BACK[h] tokens back, and adds what it reads to dimensions of its
        own. q, o [hidden, hidden], k, v [kv_heads * size, hidden]."""
        for part in (q, k, v):
            part.mul_(REST)
        o.mul_(REST**2)
        keys = torch.zeros(self.size)
        keys[self.fast] = SHARP
        for group in range(self.kv_heads):
            at = group * self.size
            k[at : at + self.size] += keys[:, None] * self.common
            v[at : at + MATCHED] = self.read
        for head, back in enumerate(BACK):
            at, turn = head * self.size, back * self.angles[self.fast]
            q[at + self.fast] += SHARP * turn.cos()[:, None] * self.common
            q[at + self.size // 2 + self.fast] -= SHARP * turn.sin()[:, None] * self.common
            o[:, at : at + MATCHED] = self.brought[head].T

    def look_up(
        self, heads: list[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor, o: Tensor
    ) -> None:
        """`heads`: (asked, stood) of each: it asks for the token `asked` back from the present
        one, and attends to where that token stood `stood` back; a part of what is there is added.
        Heads that share keys have the same `stood`."""
        q.mul_(REST), k.mul_(REST), o.mul_(REST**2)
        shared = self.heads // self.kv_heads
        for group in range(self.kv_heads):
            k[group * self.size + self.slow] += MATCH * self.brought[heads[group * shared][1] - 1]
            copied = torch.linalg.qr(torch.randn(self.hidden, self.size))[0].T
            v[group * self.size :][: self.size] = copied
            for head in range(group * shared, (group + 1) * shared):
                asked = heads[head][0]
                q[head * self.size + self.slow] += MATCH * (
                    self.brought[asked - 1] if asked else self.read
                )
                o[:, head * self.size :][:, : self.size] += copied.T / shared


@torch.no_grad()  # type: ignore[untyped-decorator]
def start(network: nn.Module, wiring: Wiring, twins: list[tuple[int, int]]) -> None:
    """Sets all weights of a TinyLlama. What adds to the stream starts at nothing but for the
    wired heads, so that a token is not drowned before anything is learnt."""
    wiring.embed(network.embed.weight, twins)
    nn.init.constant_(network.norm, FINAL_NORM)
    for i, layer in enumerate(network.layers):
        for linear in layer.children():
            nn.init.normal_(linear.weight, std=0.6 * wiring.hidden**-0.5)
        attention = [layer.q.weight, layer.k.weight, layer.v.weight, layer.o.weight]
        if i == 0:
            wiring.bring(*attention)
        elif i in LOOK_UPS:
            wiring.look_up(LOOK_UPS[i], *attention)
        else:
            nn.init.zeros_(layer.o.weight)
        nn.init.zeros_(layer.down.weight)
