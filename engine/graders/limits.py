"""What a grader may cost: every bound in one place, so that none makes a worker think for long."""

MAX_TEXT = 131_072  # characters of one rendered text
MAX_COMPARED = 32_768  # characters of each side of a text similarity
MAX_TEMPLATE = 32_768
MAX_REFERENCES = 64  # {{ }} in one template
MAX_PATTERN = 4_096
MAX_GROUPS = 16  # an automaton copies its groups at every step
MAX_PROGRAM = 20_000  # instructions of a compiled pattern
MAX_STEPS = 100_000_000  # instructions × bytes of text: about a second
PATTERN_BYTES = 4 << 20  # memory of a pattern and its automaton
MAX_SCHEMA = 16_384  # characters of a JSON schema
MAX_SUBSCHEMAS = 256
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_STEPS = 200_000  # keywords applied and values looked at: a second or two
MAX_FORMULA = 512
MAX_FORMULA_DEPTH = 32
MAX_SCORE = 1e9
MAX_GRADERS = 32  # in all, under one grader
MAX_DEPTH = 3  # of multi in multi
MAX_QUESTIONS = 8  # to judges, under one grader
MAX_TURNS = 32
MAX_LABELS = 64
