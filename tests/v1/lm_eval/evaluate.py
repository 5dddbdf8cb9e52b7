"""Both tasks of this folder by lm-eval's own models, in one process; prints accuracies as JSON.

evaluate.py TOKENIZER MODEL... with LUTHIER_V1, the base URL, and OPENAI_API_KEY set
"""

import json
import os
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

KINDS = {
    "local-completions": ("completions", ["tickets_chosen", "tickets_written"]),
    "local-chat-completions": ("chat/completions", ["tickets_written"]),
}


def evaluated(kind: str, model: str, tokenizer: str) -> dict[str, float]:
    route, tasks = KINDS[kind]
    arguments = {
        "model": model,
        "base_url": f"{os.environ['LUTHIER_V1']}/{route}",  # noqa: TID251  # lm-eval's key is there too
        "num_concurrent": 4,
        "max_length": 512,
    }
    own = {"tokenizer": tokenizer} if kind == "local-completions" else {"eos_string": "<|end|>"}
    found = simple_evaluate(
        model=kind,
        model_args=arguments | own,
        tasks=tasks,
        task_manager=TaskManager(include_path=".", include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
        log_samples=False,
    )["results"]
    return {
        task: next(value for name, value in found[task].items() if name in METRICS)
        for task in tasks
    }


METRICS = ("acc,none", "exact_match,none")

if __name__ == "__main__":
    tokenizer, *models = sys.argv[1:]
    print(
        json.dumps(
            {kind: {model: evaluated(kind, model, tokenizer) for model in models} for kind in KINDS}
        )
    )
