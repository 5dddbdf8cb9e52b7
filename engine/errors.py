"""The one root of everything the engine raises.

EngineError
├── DatasetInvalid        rows.py: a dataset with problems, each with line and field
├── TemplateUnsupported   render.py: a chat template whose loss mask cannot be told
├── RenderInvalid         render.py: rows or a model folder that cannot be rendered
├── infer/errors.py       what the inference server refuses
└── train/                what a trainer refuses
"""


class EngineError(Exception):
    """Says what is wrong, where, and what to do next."""
