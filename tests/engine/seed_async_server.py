"""A user's program: streams from AsyncLLMEngine behind a web application, which is Starlette's here.

Run by test_seed_programs.py as a program of its own: `python seed_async_server.py PORT`.
"""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from quire import AsyncEngineArgs, AsyncLLMEngine, SamplingParams

engine_args = {
    "model": "smollm2-135m-instruct",
    "trust_remote_code": True,
    "dtype": "float32",  # such programs say bfloat16, which CPUs compute very slowly
    "enforce_eager": True,
    "tensor_parallel_size": 1,
    "gpu_memory_utilization": 0.9,
    "max_model_len": 256,
    "cpu_threads": 1,  # a second thread would wait for the tests' own
}
prompt = "你是谁"
messages = [{"role": "system", "content": "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."},
            {"role": "user", "content": prompt}]
llm = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(**engine_args))
tokenizer = llm.tokenizer
text = llm.chat_template.render(messages, add_generation_prompt=True)


async def chat_complete(request: Request) -> StreamingResponse:
    return StreamingResponse(generate_text(), media_type="text/event-stream")


async def generate_text() -> AsyncIterator[str]:
    sampling_params = SamplingParams(repetition_penalty=1.0,
                                     temperature=0.7,
                                     stop_token_ids=[tokenizer.eos_token_id, *tokenizer.special_ids],
                                     max_tokens=48,
                                     min_tokens=48,  # so that two requests are sure to overlap
                                     skip_special_tokens=True)
    request_id = f"chatcmpl-{uuid.uuid4().hex}"
    result_generator = llm.generate(text,
                                    sampling_params=sampling_params,
                                    request_id=request_id,
                                    lora_request=None,
                                    )
    async for result in result_generator:
        generated_text = result.outputs[0].text
        yield json.dumps({"success": True, "content": generated_text}) + "\n"


app = Starlette(routes=[Route("/api", chat_complete, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), workers=1)
