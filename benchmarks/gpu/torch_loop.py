"""Part "torch": the same model's token loop in PyTorch on the same device, so that one run gives a ratio.

"reference loop": this file's loop, of the same arithmetic as the release's: Qwen2.5 blocks with a static cache, then one
flow-head evaluation after another, each computing its condition's modulations anew as the release does; guidance rows side by
side. It needs torch alone. "eager": operation by operation; "compiled": each transformer layer and the flow head's network
under `torch.compile`; "compiled, graph": the same, a whole token captured in one CUDA graph, so that Python launches nothing.

"release": with `--peer` the release's own decoding loop, see benchmarks/torch_peer.py; with `--compiled` that alone, under
`torch.compile`, as it ships.

Weights are random, in bfloat16. Figures are seconds a token, of one image with guidance; `flow_head` is all its evaluations.
"""

import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

from benchmarks.gpu.decoding import CFG, FULL, TINY
from benchmarks.gpu.record import Record, run_part

ROUNDS = 3
ROWS = 2  # with and without the prompt


def measure(record: Record, a) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # all of the card's memory is this loop's
    if not a.peer and importlib.util.find_spec("torch") is None:
        record.put("reference loop", {"skipped": "torch is not installed"})
        return
    import torch

    from nextstep_jax.config import preset

    size = TINY if record.tiny else FULL
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config, steps = preset(size["preset"]), size["more_steps"]
    record.put("torch", {"version": torch.__version__, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"})
    record.put("setting", {name: size[name] for name in ("preset", "prompt", "tokens", "chunk")} | {"steps": steps})
    if not a.compiled:
        reference(record, config, size, device)
    if a.peer:
        if a.peer_packages:
            sys.path.insert(0, a.peer_packages)
        if device == "cuda":
            torch.cuda.empty_cache()
        name = "release, compiled" if a.compiled else "release"
        record.attempt(name, lambda: release(a.peer, config, size, steps, device, a.compiled), needs=15)


def reference(record: Record, config, size: dict, device: str) -> None:
    """The figures of the reference loop."""
    import torch

    chunk, steps = max(2, size["chunk"] // 4), size["more_steps"]  # eager tokens take long
    with torch.inference_mode():
        loop = ReferenceLoop(config, size["prompt"] + size["tokens"], device)
        record.put("weights_bytes", loop.bytes)
        record.attempt("reference loop, eager", lambda: loop.times(size["prompt"], chunk, steps), needs=8)
        if not record.tiny:  # compiling takes long, whatever the size
            record.attempt("reference loop, compiled", lambda: loop.compiled().times(size["prompt"], chunk, steps), needs=20)
        if device == "cuda":
            record.attempt("reference loop, compiled, graph", lambda: loop.captured(size["prompt"], steps, chunk), needs=10)


class ReferenceLoop:
    """Random weights of `config` on a device, and the loop over them.

    Letters: R rows, D width, N and K query and key heads, H head dim, T cache slots, W width of the flow head, C channels.
    """

    def __init__(self, config, slots: int, device: str):
        import torch

        self._torch, self._config, self._device = torch, config, device
        t, head = config.transformer, config.flow_head
        kernels = (t.heads + 2 * t.kv_heads) * t.head_dim
        self._layers = [
            {
                "qkv": self._normal(kernels, t.width),
                "bias": self._normal(kernels),
                "o": self._normal(t.width, t.heads * t.head_dim),
                "gate_up": self._normal(2 * t.mlp_width, t.width),
                "down": self._normal(t.width, t.mlp_width),
                "norms": self._normal(2, t.width),
            }
            for _ in range(t.layers)
        ]
        w = head.width
        self._blocks = [
            {"modulation": self._normal(3 * w, w), "in": self._normal(head.hidden, w), "out": self._normal(w, head.hidden)}
            for _ in range(head.layers)
        ]
        self._ends = {
            "token": self._normal(w, config.token_channels),
            "condition": self._normal(w, t.width),
            "time_in": self._normal(w, 256),
            "time_out": self._normal(w, w),
            "modulation": self._normal(2 * w, w),
            "velocity": self._normal(config.token_channels, w),
            "embed": self._normal(t.width, config.token_channels),
            "project_out": self._normal(t.width, t.width),
        }
        cache = (t.layers, 2, ROWS, t.kv_heads, slots, t.head_dim)
        self._cache = torch.zeros(cache, dtype=torch.bfloat16, device=device)
        self._slots = torch.arange(slots, device=device)
        angles = self._slots[:, None] * t.rope_theta ** (-torch.arange(0, t.head_dim, 2, device=device) / t.head_dim)
        self._rope = torch.cat([angles.cos(), angles.cos()], -1), torch.cat([angles.sin(), angles.sin()], -1)
        self._layer, self._velocity = self.layer, self.velocity

    def _normal(self, *shape: int):
        return 0.02 * self._torch.randn(shape, dtype=self._torch.bfloat16, device=self._device)

    @property
    def bytes(self) -> int:
        """Of all weights."""
        trees = [*self._layers, *self._blocks, self._ends]
        return sum(weight.numel() * weight.element_size() for tree in trees for weight in tree.values())

    def compiled(self) -> "ReferenceLoop":
        """This loop with its two networks compiled: the transformer layer by layer, which all run one program."""
        self._layer = self._torch.compile(self.layer, dynamic=False)
        self._velocity = self._torch.compile(self.velocity, dynamic=False)
        return self

    def transformer(self, x, position):
        """Hidden states [R, D] of embeddings [R, D] at one position (a tensor of one number), which is written to the cache."""
        tables = [table.index_select(0, position).to(x.dtype) for table in self._rope]
        mask = (self._slots <= position)[None, None, None]
        for weights, (keys, values) in zip(self._layers, self._cache, strict=True):
            x = self._layer(x, position, *tables, mask, keys, values, weights)
        return x

    def layer(self, x, position, cos, sin, mask, keys, values, weights):
        """One block over embeddings [R, D]; keys and values [R, K, T, H] are written to."""
        torch, t, F = self._torch, self._config.transformer, self._torch.nn.functional

        def rotate(y):
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        y = F.linear(F.rms_norm(x, (t.width,), weights["norms"][0], t.rms_norm_eps), weights["qkv"], weights["bias"])
        q, k, v = y.view(ROWS, -1, 1, t.head_dim).split([t.heads, t.kv_heads, t.kv_heads], 1)
        keys.index_copy_(2, position, rotate(k))
        values.index_copy_(2, position, v.contiguous())
        grouped = rotate(q).view(ROWS, t.kv_heads, -1, t.head_dim)  # all query heads of a key head in one product
        scores = (grouped @ keys.transpose(2, 3)).float() * t.head_dim**-0.5
        y = scores.masked_fill(~mask, -torch.inf).softmax(-1).to(x.dtype) @ values
        x = x + F.linear(y.reshape(ROWS, -1), weights["o"])
        y = F.linear(F.rms_norm(x, (t.width,), weights["norms"][1], t.rms_norm_eps), weights["gate_up"])
        gate, up = y.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, weights["down"])

    def velocity(self, x, time, condition):
        """Velocity [R, C] at points [R, C], at one time (a tensor), under conditions [R, D]."""
        torch, F, ends = self._torch, self._torch.nn.functional, self._ends
        w = self._config.flow_head.width
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(128, device=x.device) / 128)
        features = torch.cat([(time * frequencies).cos(), (time * frequencies).sin()], -1).to(x.dtype)
        y = F.linear(F.silu(F.linear(features, ends["time_in"])), ends["time_out"]) + F.linear(condition, ends["condition"])
        steer = F.silu(y)
        x = F.linear(x, ends["token"])
        for block in self._blocks:
            shift, scale, gate = F.linear(steer, block["modulation"]).chunk(3, -1)
            h = F.layer_norm(x, (w,), eps=1e-6) * (1 + scale) + shift
            x = x + gate * F.linear(F.silu(F.linear(h, block["in"])), block["out"])
        shift, scale = F.linear(steer, ends["modulation"]).chunk(2, -1)
        return F.linear(F.layer_norm(x, (w,), eps=1e-6) * (1 + scale) + shift, ends["velocity"])

    def token(self, condition, steps: int):
        """A token [1, C] from conditions [R, D]: the stochastic sampler of the August 2025 release in so many evaluations."""
        torch = self._torch
        x = torch.randn((1, self._config.token_channels), device=self._device)
        times = torch.linspace(0, 0.96, steps, device=self._device)
        for i in range(steps):
            v = self._velocity(x.repeat(ROWS, 1).to(condition.dtype), times[i], condition).float()
            v = v[1:] + CFG * (v[:1] - v[1:])
            if i + 1 == steps:
                return x + 0.04 * v
            dt, t = times[i + 1] - times[i], times[i]
            score = (t * v - x) / (1 - t).clamp(min=1e-3)
            x = x + (v + (1 - t) * score) * dt + (2 * (1 - t) * dt).sqrt() * torch.randn_like(x)

    def step(self, x, position, steps: int):
        """The next embeddings [R, D]: transformer, flow head, and the token embedded again."""
        F = self._torch.nn.functional
        hidden = F.linear(self.transformer(x, position), self._ends["project_out"])
        token = F.layer_norm(self.token(hidden, steps), (self._config.token_channels,))
        return F.linear(token.to(x.dtype), self._ends["embed"]).repeat(ROWS, 1)

    def _start(self, prompt: int):
        torch = self._torch
        x = 0.02 * torch.randn((ROWS, self._config.transformer.width), dtype=torch.bfloat16, device=self._device)
        return x, torch.tensor([prompt], device=self._device)

    def times(self, prompt: int, chunk: int, steps: int) -> dict:
        """Seconds a token, in all and of its two networks; medians after a warm-up."""
        x, position = self._start(prompt)

        def tokens():
            y = x
            for i in range(chunk):
                y = self.step(y, position + i, steps)

        def transformer():
            for i in range(chunk):
                self.transformer(x, position + i)

        began = time.perf_counter()
        tokens()
        warm_up = time.perf_counter() - began
        found = {
            "a_token": median_seconds(self._torch, tokens) / chunk,
            "transformer": median_seconds(self._torch, transformer) / chunk,
            "flow_head": median_seconds(self._torch, lambda: self.token(x, steps)),
        }
        return {"seconds": found, "warm_up_seconds": warm_up, "peak_bytes": self._peak()}

    def captured(self, prompt: int, steps: int, chunk: int) -> dict:
        """Seconds a token of `step` replayed as one CUDA graph."""
        torch = self._torch
        x, position = self._start(prompt)
        began = time.perf_counter()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.step(x, position, steps)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x.copy_(self.step(x, position, steps))
            position.add_(1)
        warm_up = time.perf_counter() - began

        def replay():
            position.fill_(prompt)
            for _ in range(chunk):
                graph.replay()

        seconds = median_seconds(torch, replay) / chunk
        return {"seconds": {"a_token": seconds}, "warm_up_seconds": warm_up, "peak_bytes": self._peak()}

    def _peak(self) -> int | None:
        return self._torch.cuda.max_memory_allocated() if self._device == "cuda" else None


def median_seconds(torch, run: Callable) -> float:
    """Median of ROUNDS calls after one more, each waited for."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(ROUNDS))


def release(folder: str, config, size: dict, steps: int, device: str, compiled: bool) -> dict:
    """Seconds a token of the release's own loop."""
    import torch

    from benchmarks.torch_peer import Peer

    dtype = "bfloat16" if device == "cuda" else "float32"
    peer = Peer(folder, config, os.cpu_count() or 1, device, dtype, compiled)
    chunk = max(2, size["chunk"] // 4)
    decode = peer.decoder(1, size["prompt"], size["tokens"], chunk, CFG, steps)
    head = peer.flow_head(1, CFG, steps)
    began = time.perf_counter()
    decode()
    warm_up = time.perf_counter() - began
    a_token = statistics.median(decode() for _ in range(ROUNDS)) / chunk
    flow_head = median_seconds(torch, head)
    found = {"a_token": a_token, "flow_head": flow_head, "transformer": a_token - flow_head}
    return {"seconds": found, "compiled": compiled, "warm_up_seconds": warm_up}


if __name__ == "__main__":
    run_part(measure, peer=dict(), peer_packages=dict(), compiled=dict(action="store_true"))
