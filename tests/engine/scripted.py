"""A core without a model: a script says what each step finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from quire.engine.config import EngineArgs, EngineConfig
from quire.engine.core import EngineCore
from quire.engine.execution.executor import Launched
from quire.engine.model_config import ModelConfig
from quire.engine.plan import StepPlan, StepResult

Script = Callable[[StepPlan], StepResult]


@dataclass(slots=True)
class ScriptedExecutor:
    script: Script
    num_blocks: int = 64
    vocab_size: int = 100
    generates: bool = True
    num_graph_steps: int = 0
    plans: list[StepPlan] = field(default_factory=list)
    is_closed: bool = False

    def launch(self, plan: StepPlan) -> Launched:
        self.plans.append(plan)
        return _Scripted(self.script, plan)

    def check(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


@dataclass(frozen=True, slots=True)
class _Scripted:
    script: Script
    plan: StepPlan

    def result(self) -> StepResult:
        return self.script(self.plan)


def scripted_core(executor: ScriptedExecutor, *, steps_ahead: int = 1) -> EngineCore:
    model = ModelConfig(path="nowhere", file_format="hf", architecture="LlamaForCausalLM", dtype="float32",
                        vocab_size=executor.vocab_size, hidden_size=8, num_layers=1, num_heads=1, num_kv_heads=1,
                        head_dim=8, max_position_embeddings=128)
    return EngineCore(EngineConfig(args=EngineArgs(), model=model, device="cpu", dtype="float32", max_model_len=128,
                                   max_num_seqs=8, max_num_batched_tokens=32, num_steps_ahead=steps_ahead), executor)
