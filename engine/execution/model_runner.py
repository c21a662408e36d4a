"""Carries out step plans on one device: upload, gather, forward, sample. Knows no request, only rows.

`launch` queues a step on the device and returns at once; `Pending.result` waits for that step alone. Nothing between
them reads a device value.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from llguidance import LLTokenizer

from quire.engine.config import EngineConfig
from quire.engine.execution import batch, kv_cache, pooled_rows, warm_up
from quire.engine.execution.feature_rows import FeatureRows
from quire.engine.execution.freed_memory import FreedMemory
from quire.engine.execution.grammar_rows import GrammarRows
from quire.engine.execution.graphs import Size, StepGraphs, all_sizes, predicted_bytes
from quire.engine.execution.mrope_rows import MRopeRows
from quire.engine.execution.open_step import OpenStep
from quire.engine.execution.pending import Pending
from quire.engine.execution.request_table import MIN_P, TEMPERATURE, TOP_P, RequestTable
from quire.engine.execution.special_rows import SpecialRows
from quire.engine.execution.told_prompts import ToldPrompts
from quire.engine.execution.upload import Upload
from quire.engine.grammar.vocabulary import grammar_vocabulary
from quire.engine.parallel import Parallel
from quire.engine.plan import StepPlan
from quire.engine.tokenizers.tokenizer import end_token_ids, load_tokenizer
from quire.engine.weights.load import load_model
from quire.kernels import launch, ops

Progress = Callable[[str, float], None]

_FEW_TOKENS = 4  # of an image, that use the kernels of all


class ModelRunner:
    """One rank's device side: model, KV cache, request table, CUDA graphs."""

    def __init__(self, config: EngineConfig, parallel: Parallel, progress: Progress,
                 advances: Callable[[], None]) -> None:
        """`advances` is called within steps on a CPU, as `core` says."""
        self.config = config
        launch.set_batch_invariant(config.args.batch_invariant)
        self.device = torch.device(config.device)
        self._advances = advances if self.device.type == "cpu" else None
        self.dtype: torch.dtype = getattr(torch, config.dtype)
        self._kv_type: torch.dtype = getattr(torch, config.kv_type)
        self.block_size = config.args.block_size
        self.model = load_model(config, parallel, self.device, self.dtype, progress)
        self.table = RequestTable.empty(config.max_num_seqs, config.max_model_len, self.block_size, self.device,
                                        len(self.model.kv_groups.windows), with_deltas=self.model.mrope is not None)
        vision, tower = config.model.vision, self.model.tower
        self.mrope_rows = None if self.model.mrope is None or vision is None else MRopeRows(vision.merge_size)
        self.feature_rows = None if tower is None else FeatureRows(tower, config.encoder_tokens,
                                                                   one_by_one=config.args.batch_invariant)
        self.grammars = GrammarRows(partial(_grammar_vocabulary, config, self.model.vocab_size), self.model.vocab_size,
                                    pins=self.device.type == "cuda")
        self._storage: list[kv_cache.KVCache] = []
        self.kv_caches: list[kv_cache.KVCache] = []  # a layer each: those of the storage, once a group
        self.graphs: StepGraphs | None = None
        self._freed = FreedMemory() if self.device.type == "cpu" else None
        self._latest: Pending | None = None
        self.num_graph_steps = 0
        self.num_shared_steps = 0  # in which blocks were read once for many rows
        if self.device.type == "cuda":
            self.grammars.prepare()
            self._compile_kernels(progress)

    @property
    def block_bytes(self) -> int:
        m = self.model
        return kv_cache.block_bytes(m.kv_groups.depth, m.num_kv_heads, m.head_dim, self.block_size, self._kv_type)

    @property
    def _captures(self) -> bool:
        return self.model.can_be_captured and self.model.generates and not self.config.args.enforce_eager

    def allocate(self, num_blocks: int) -> None:
        m = self.model
        self._storage = kv_cache.allocate(m.kv_groups.depth, num_blocks, m.num_kv_heads, self.block_size, m.head_dim,
                                          self._kv_type, self.device)
        self.kv_caches = [self._storage[depth] for depth in m.kv_groups.depths]

    def free_cache(self) -> None:
        self._storage, self.kv_caches = [], []

    def _compile_kernels(self, progress: Progress) -> None:
        """All those that the start and the steps after it would compile one by one."""
        from quire.kernels import compile_ahead  # brings Triton

        progress("compiling kernels", 0.0)
        compile_ahead.kernels_of(self._rehearse, torch.cuda.current_device())

    @torch.inference_mode()
    def _rehearse(self) -> None:
        """The steps of `prepare`, in the last layers: the last one has kernels of its own, and those before it have one
        of each window."""
        self.allocate(1)
        self.kv_caches = self.kv_caches[-self.model.kv_groups.num_telling_layers:]
        for plan in warm_up.plans(self.config, samples=self.model.generates):
            self.launch(plan).result()
        warm_up.mask_tokens(self.model.vocab_size, self.device)
        self.rehearse_tower(_FEW_TOKENS)
        if self._captures:
            self._step_graphs().rehearse(self._graph_sizes())
        self.free_cache()

    def prepare(self, progress: Progress) -> None:
        """On a GPU: compile kernels, keep the memory that steps need, and capture CUDA graphs where they are wanted."""
        if self.device.type == "cuda":
            progress("warming up", 0.0)
            for plan in warm_up.plans(self.config, samples=self.model.generates):
                self.launch(plan).result()
            warm_up.mask_tokens(self.model.vocab_size, self.device)
            self.rehearse_tower()
            if self._captures:
                self._capture(progress)

    @torch.inference_mode()
    def rehearse_tower(self, num_tokens: int | None = None) -> None:
        """A batch of images of so many tokens in all, or the largest that a step may encode."""
        if self.feature_rows is not None:
            self.feature_rows.rehearse(num_tokens)

    @torch.inference_mode()
    def _capture(self, progress: Progress) -> None:
        self.graphs = self._step_graphs()
        self.graphs.capture(self._graph_sizes(), progress)

    @torch.inference_mode()
    def measure_graphs(self) -> int:
        """Bytes of the device that captured graphs will take, before there is a cache."""
        if not self._captures:
            return 0
        self.allocate(1)
        capture = partial(self._step_graphs().capture, progress=lambda *_: None, pool=torch.cuda.graph_pool_handle())
        found = predicted_bytes(self._graph_sizes(), capture, free_device_bytes)
        self.free_cache()
        del capture  # and the graphs with it
        torch.cuda.empty_cache()
        return found

    def _step_graphs(self) -> StepGraphs:
        return StepGraphs(self.model, self.table, self.kv_caches, self.block_size, self.config.max_model_len)

    def _graph_sizes(self) -> list[Size]:
        args = self.config.args
        return all_sizes(self.config.max_num_seqs,
                         with_sharing=args.enable_prefix_caching and not args.batch_invariant)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Pending:
        launch.set_batch_invariant(self.config.args.batch_invariant)  # of several engines in a process each has its own
        if self._freed is not None:
            self._freed.give_back_at_times()
        if self._latest is not None:
            self._latest.settle()  # what follows reads its tokens on the device
        self._latest = self._launch(plan)
        return self._latest

    def _launch(self, plan: StepPlan) -> Pending:
        told = pooled = None
        # Graphs keep nothing of what the last layer makes, and know no images.
        eager = self.graphs is None or bool(plan.told_places) or bool(plan.pooled_places) or bool(plan.media_places)
        has_angles = False
        if self.mrope_rows is not None:
            self.mrope_rows.enter(plan.new_rows)
            has_angles = self.mrope_rows.differ(plan)
            eager = eager or has_angles
        size = None if self.graphs is None or eager else self.graphs.size_for(plan)
        upload = Upload()
        self.table.pack(plan, upload)  # first: what follows asks the host's share of the table about new rows too
        if self.mrope_rows is not None:
            self.mrope_rows.pack(plan, upload, differ=has_angles)
        if self.feature_rows is not None:
            self.feature_rows.pack(plan, upload)
        self.grammars.enter(plan.new_rows)
        is_special = not self.table.special_rows.isdisjoint(plan.rows)
        special = SpecialRows(plan, self.table) if is_special else None
        self._send(plan, size, special, upload)
        self._change_tables(plan, upload)
        self.num_shared_steps += bool(plan.shared_places) and (size is None or size.shared)
        if self.graphs is not None and size is not None:
            self.num_graph_steps += 1
            step = self.graphs.run(size, upload["graph"])  # samples, and writes to the table
            if step.logits is None or step.token_ids is None:
                return Pending.empty(self.device)
            token_ids = _sampled_only(step.token_ids, plan, upload)
            logits = _sampled_only(step.logits, plan, upload) if is_special else None
        else:
            hidden = self._hidden(plan, upload, has_angles=has_angles)
            if hidden is None:
                return Pending.empty(self.device)
            if plan.told_places:
                told = ToldPrompts.of(hidden, plan, upload, self.table, self.model.logits)
            if plan.pooled_places:
                pooled = pooled_rows.sums(hidden, plan, upload, self.model.features)
            logits = self._logits(hidden, plan, upload)
            if logits is None:
                tells = told is not None or pooled is not None
                return Pending.of(None, told=told, pooled=pooled) if tells else Pending.empty(self.device)
            if special is not None and special.edits_all:
                token_ids = logits.new_empty(logits.shape[0], dtype=torch.int32)
            else:
                token_ids = self._sample(logits, plan, upload)
        if special is None or logits is None or not any(plan.samples):
            return Pending.of(token_ids, told=told, pooled=pooled)
        special.edit(logits, self.table)
        if special.has_grammars:
            return OpenStep(self.grammars, self.table, plan.sampling_rows, special, logits, token_ids, told, pooled,
                            self._latest).launched()
        token_ids = special.draw(token_ids, self.table)
        return Pending.of(token_ids, special.logprobs(logits, token_ids), special.wanted, told, pooled)

    def _send(self, plan: StepPlan, size: Size | None, special: SpecialRows | None, upload: Upload) -> None:
        """The rest of what the step reads of the host, and off it goes."""
        if self.graphs is not None and size is not None:
            upload.add("graph", self.graphs.pack(plan, size))
            if not _samples_first(plan):
                upload.add("sample_places", size.sample_places(plan))
        else:
            batch.pack(plan, upload)
            batch.pack_samples(plan, upload)
        if plan.copy_sources:
            upload.add("copies", np.array([plan.copy_sources, plan.copy_targets], np.int32))
        if special is not None:
            special.pack(upload)
        upload.send(self.device)

    def _change_tables(self, plan: StepPlan, upload: Upload) -> None:
        if plan.copy_sources:
            sources, targets = upload["copies"]
            for k_cache, v_cache in self._storage:
                ops.copy_blocks(k_cache, v_cache, sources, targets)
        self.table.apply(plan, upload)

    def _hidden(self, plan: StepPlan, upload: Upload, *, has_angles: bool) -> torch.Tensor | None:
        """As CausalLM.forward's, kernel by kernel; of all tokens where the plan needs them."""
        angles = media = None
        if has_angles and self.model.mrope is not None:
            angles = self.model.mrope.angles(upload["mrope_positions"])
        if self.feature_rows is not None:
            if plan.encodes:
                self.feature_rows.encode(plan.encodes)
            media = self.feature_rows.of_step(plan, upload)
        token_ids, attention = batch.gather(plan, upload, self.table, self.block_size,
                                            host_lists=self.device.type == "cpu", advances=self._advances,
                                            angles=angles, media=media)
        return self.model.forward(token_ids, attention, self.kv_caches)

    def _logits(self, hidden: torch.Tensor, plan: StepPlan, upload: Upload) -> torch.Tensor | None:
        """Logits of the sampling rows, [samples, vocab]; None where no row samples."""
        if not any(plan.samples):
            return None
        if plan.needs_all_tokens and not plan.only_decodes:
            hidden = hidden.index_select(0, upload["last_tokens"])
        if not all(plan.samples):
            hidden = hidden.index_select(0, upload["sample_places"])
        return self.model.logits(hidden)

    def _sample(self, logits: torch.Tensor, plan: StepPlan, upload: Upload) -> torch.Tensor:
        """The next tokens of the sampling rows, written to the table. [samples] int32"""
        table, rows, positions = self.table, upload["sample_rows"], upload["sample_positions"]
        floats = table.floats[:, rows]
        token_ids = ops.sample(logits, floats[TEMPERATURE], table.top_k[rows], floats[TOP_P], floats[MIN_P],
                               table.seeds[rows], positions,
                               filtered=any(table.host[row].filtered for row in plan.sampling_rows))
        table.tokens[rows, positions] = token_ids
        return token_ids


def _grammar_vocabulary(config: EngineConfig, vocab_size: int) -> LLTokenizer:
    tokenizer = load_tokenizer(config.model, config.args.tokenizer)
    return grammar_vocabulary(tokenizer, vocab_size, end_token_ids(config.model, tokenizer))


def free_device_bytes() -> int:
    """Of the GPU, with nothing of it that torch only keeps for later."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def _samples_first(plan: StepPlan) -> bool:
    """Whether a graph's first results are those of the plan's rows, one each."""
    return plan.only_decodes and all(plan.samples)


def _sampled_only(results: torch.Tensor, plan: StepPlan, upload: Upload) -> torch.Tensor:
    """Of a graph's results, one a sequence, those of the rows that sample."""
    if _samples_first(plan):
        return results[:plan.num_decodes]
    return results.index_select(0, upload["sample_places"])
