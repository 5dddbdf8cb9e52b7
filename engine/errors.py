"""The one root of everything the engine raises.

EngineError
├── DatasetInvalid        rows: a dataset with problems, each with line and field
├── GradingFault          graders: a sample that a grader cannot score
├── RenderError           template.py: a model folder or conversation that cannot be rendered
│   └── TemplateUnsupported   the loss mask cannot be told under this chat template
├── infer/errors.py       what the inference server refuses
└── train/                what a trainer refuses
"""


class EngineError(Exception):
    """Says what is wrong, where, and what to do next."""
