"""Which columns published data sets use for what, on one page: names of each role by rank, and data sets that need more.

How a kind of row is read follows from the names of its columns alone, see `recognition`:

1. Conversation > generated response > reference (`solution`, then `answer`) > bare `text`. The highest rank that a kind of row
   has is read; columns of lower ranks are named as not read.
2. Two columns of one rank that could be the response stop the run, unless they are numbered (`r1_solution_1`, `_2`) or bear
   the prefixes of two teachers (`deepseek_attempt`, `gemini_attempt`): then a row holds several trajectories.
3. A column of responses that is a list holds one trajectory an element; lists of the same length beside it go with it.
4. What is marked NEVER is never scored, whatever else is missing: final answers, labels, reference code.
5. A column whose name says that a model wrote it, and whose place is not known, stops the run where a reference would be scored
   in its stead; so does one that may hold thoughts beside a response without any.

Names are compared without regard to case. Every list runs from what wins to what gives way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _names(text: str) -> list[str]:
    return text.split()


# --- columns --------------------------------------------------------------------------------------------------------------

CONVERSATIONS = (
    ("reannotated_messages",),  # R1-Distill-SFT, whose `messages` hold the old text
    ("messages", "conversations", "conversation", "trajectory", "steps"),
)
RESPONSES = frozenset(
    _names("""
    response responses completion completions output outputs generation generations attempt generated_solution
    llm_response model_response model_output model_answer assistant_response reannotated_assistant_content
""")
)
THOUGHTS = frozenset({"thinking_trajectory", "thinking_trajectories"})
"""Thoughts that are a trajectory even where no answer stands beside them."""
REASONINGS = frozenset(
    _names("""
    reasoning reasoning_content model_reasoning thinking think complex_cot thought thoughts thought_process thinking_process
    thinking_content think_content reasoning_process reasoning_trace reasoning_text
""")
)
"""Thoughts that go before the response beside them."""
REFERENCES = (("solution",), ("answer",))
NEVER = frozenset(
    _names("""
    answers expected_answer final_answer ground_truth ground_truth_solution gold_standard_solution reference
    reference_answer reference_solution gold gts label
""")
)
PROMPTS = ("prompt", "problem", "question", "query", "instruction", "input")
CONTEXT = "context"
"""The prompt where it holds messages and nothing else is one; what an instruction is about, where it is text."""
BESIDE_PROMPT = frozenset(
    _names("""
    context contexts passage passages document documents article paragraph paragraphs excerpt options choices
""")
)
"""What a prompt is not whole without, unless it holds their text already."""
SYSTEMS = ("system", "system_prompt")
HISTORY = "history"
HISTORIES = (HISTORY, "prev_messages", "previous_messages", "chat_history")
TOOLS = "tools"
FUNCTIONS = "functions"
"""Tools as OpenAI's API called them first, where there are no `tools`."""
TEMPLATE_KWARGS = "chat_template_kwargs"
TEXT = "text"
PICTURES = re.compile(
    r"(?:decoded_|input_)?(image|img|picture|video|audio)s?(?:_?(?:path|url|file|bytes|base64))?s?(?:_?\d+)?|pixel_values"
)
"""Columns that hold pictures, films or sounds which belong to the prompt, where their values are such."""

WHOLE_IDS = ("input_ids", "tokens")
"""Ids of prompt and response in one list, with a mask or with `RESPONSE_LENGTH` beside them."""
PROMPT_IDS_APART = ("prompt_token_ids", "prompt_ids")
COMPLETION_IDS = ("completion_token_ids", "completion_ids", "response_ids", "output_token_ids")
TOKEN_IDS = frozenset({*WHOLE_IDS, *PROMPT_IDS_APART, *COMPLETION_IDS})
RESPONSE_LENGTH = "response_length"
LABELS = frozenset({"labels"})
TOGETHER = ("completion_mask", "assistant_masks")
"""Masks that hold together where both are there, as in TRL."""
MASKS = ("labels", "loss_mask", "loss_masks", "response_mask", *TOGETHER)
PADDING = "attention_mask"
PROMPT_PADDING = "prompt_mask"
"""The padding of ids of the prompt, where these are apart, in TRL."""
SAMPLER = ("completion_logprobs", "rollout_log_probs", "rollout_logprobs", "logprobs")
"""Log-probabilities of the ids under what sampled them."""

ANSWER = "content"
"""The answer where thoughts stand beside it and nothing else is a response."""
ENTRIES = ("response", "completion", "output", "generation", "answer", "text", "content")
"""Keys of the text where a list of responses holds objects that are no turns; `ENTRY_TEACHERS` say who wrote it."""

TEACHERS = ("teacher", "model", "model_name", "generator", "generation_model")
ENTRY_TEACHERS = (*TEACHERS, "response_model", "model_id")
TEACHER_PATHS = ("agent.model_name", "metadata.teacher_model.name", "metadata.model")
IDS = (
    ("id",),
    ("response_id",),
    ("traj_id",),
    ("trajectory_id",),
    ("conversation_id",),
    ("conversation_hash",),
    ("trial_name", "episode"),
    ("uuid",),
)
"""Columns that name a row, the last but one together."""
PROMPT_IDS = ("prompt_id", "problem_id", "question_id", "instance_id")
CORRECT = tuple(
    _names(
        "correct is_correct correctness correctness_math_verify correctness_llama judgement grade resolved score reward "
        "verifier_score"
    )
)
FOLLOWERS = ("correctness_math_verify", "correctness_llama", "is_reasoning_complete", "finish_reasons")
"""Lists that go with the list of responses even where some are shorter or null."""

RESPONSE_SUFFIXES = ("attempt", "response", "generation", "completion", "output", "solution", "answer")
REASONING_SUFFIXES = ("thinking_trajectory", "reasoning", "thinking", "cot")
NO_TEACHERS = frozenset(
    _names("""
    generated llm model assistant full raw chosen rejected best worst final expected gold ground_truth
    gold_standard reference correct original human student
""")
)
"""Prefixes of columns that name no teacher."""
FAMILIES = tuple(
    _names("""
    claude command deepseek gemini gemma glm gpt granite grok kimi llama minimax mistral nemotron o1 o3 o4 phi
    qwen qwq r1 seed yi
""")
)
"""How prefixes begin that name a teacher by themselves; any other prefix does if a column of thoughts bears it too."""

_BY_A_MODEL = re.compile(
    r"responses?|completions?|outputs?|generations?|generated|attempts?|rollouts?|samples|predictions?|predicted|preds?"
    r"|candidates?|replys?|replies|resp|trajectory|trajectories|steps|chosen|rejected|preferred|cots?|thoughts?|thinking"
    r"|reasonings?|rationales?|assistant|messages|conversations?|dialog|dialogues?|llm|choices"
)
_THOUGHT = re.compile(
    r"(?:\w+_)?(?:cots?|chains?_of_thoughts?|thoughts?|think|thinking|reasonings?|rationales?|scratchpad)"
    r"(?:_(?:traces?|process|content|text|steps|chains?|paths?|trajectory|trajectories|details))?"
)
_ABOUT = frozenset(
    _names("""
    input inputs expected example examples test tests gold ground truth gt ref reference target human original type model
    models name id ids score scores count counts num length len tokens token language lang level time date idx index format
    status reason rate url path file source config configs template difficulty category label labels effort mode tag tags
    kind patch diff log logs code correct correctness valid error errors finish rating ratings params prompt system domain
    retriever query grade judge quality hash version budget
""")
)
"""Words of names of columns that tell about a text, or of one that no model wrote."""
_MODEL_NAME = re.compile(
    r"(?:\d+(?:\.\d+)?[a-z]?|[a-z]?\d+|distill|instruct|pro|flash|sonnet|opus|haiku|mini|turbo|max|it)"
)

NUMBERED = re.compile(r"(.+?)_?(\d+)")
"""A name and its number."""


def may_be_generated(name: str) -> bool:
    """Whether a column's lower-case name says that a model wrote what it holds: by a word, or because it is a model's name.

    >>> [may_be_generated(name) for name in ("samples", "model_solution", "qwq", "gpt-4o", "deepseek_solution")]
    [True, True, True, True, True]
    >>> [may_be_generated(name) for name in ("input_output", "generation_model", "gpt_difficulty", "problem_type", "source")]
    [False, False, False, False, False]
    """
    words = [word for word in re.split(r"[\W_]+", name) if word]
    families = [
        word for word in words if word in FAMILIES or re.fullmatch(r"(?:gpt|qwen|llama|phi|gemma|glm)\w?\d*\w?", word)
    ]
    is_word = families in (["seed"], ["command"])
    if families and not is_word and all(word in families or _MODEL_NAME.fullmatch(word) for word in words):
        return True
    if words and words[-1] in ("solution", "answer") and len(words) > 1 and (families or words[0] in ("model", "llm")):
        return True
    return _ABOUT.isdisjoint(words) and any(_BY_A_MODEL.fullmatch(word) for word in words)


def may_be_thought(name: str) -> bool:
    """Whether a column's lower-case name says that it holds thoughts.

    >>> [may_be_thought(name) for name in ("cot", "reasonings", "long_cot", "rationale", "chain_of_thought")]
    [True, True, True, True, True]
    >>> [may_be_thought(name) for name in ("cot_type", "reasoning_effort", "with_reasons", "expected_reasoning")]
    [False, False, False, False]
    """
    return _THOUGHT.fullmatch(name) is not None and (_ABOUT - {"model"}).isdisjoint(name.split("_"))


def numbered(name: str) -> tuple[str, int | None]:
    """A column's name without its number, and the number.

    >>> numbered("r1_solution_2"), numbered("answer")
    (('r1_solution', 2), ('answer', None))
    """
    match = NUMBERED.fullmatch(name)
    if match is None:
        return name, None
    base = match[1]
    thoughts = REASONINGS | THOUGHTS
    known = base in RESPONSES | thoughts or base in ("solution", "answer") or prefixed(base) is not None
    return (base, int(match[2])) if known else (name, None)


def prefixed(name: str) -> tuple[str, str] | None:
    """Prefix and suffix of a column that names its teacher; None where it does not.

    >>> prefixed("deepseek_attempt"), prefixed("deepseek_thinking_trajectory"), prefixed("llm_response")
    (('deepseek', 'attempt'), ('deepseek', 'thinking_trajectory'), None)
    """
    if name in RESPONSES or name in NEVER or name in THOUGHTS or name in REASONINGS:
        return None
    for suffix in (*REASONING_SUFFIXES, *RESPONSE_SUFFIXES):
        prefix = name.removesuffix(f"_{suffix}")
        if prefix != name and prefix and prefix not in NO_TEACHERS:
            return prefix, suffix
    return None


# --- inside a turn ----------------------------------------------------------------------------------------------------------

ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
SPEAKERS = {
    **{role: role for role in ROLES},
    "human": "user",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "agent": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "environment": "tool",
}
"""Who speaks, in whatever case -> role. Under the key `from`, `function` is the result of one: `tool`."""
ROLE_KEYS = ("role", "from", "source")
CONTENT_KEYS = ("content", "value", "text", "message")
REASONING_KEYS = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "think",
    "thought",
    "thoughts",
    "thinking_content",
    "reasoning_text",
)
WEIGHT_KEYS = ("weight", "loss_weight", "train", "training", "loss")
TURN_KEYS = frozenset(
    _names("""
    tool_calls tool_call_id name function_call functions function_calls tool_plan citations documents channel
    recipient prefix tool_responses
""")
)
"""Keys that chat templates read, beside those above. Others do not reach the template, and are named as unread."""

# --- words ------------------------------------------------------------------------------------------------------------------

SWITCHES = frozenset(["", *_names("on off yes no true false none low medium high enabled disabled")])
"""Values of a column `reasoning` that says whether there is any."""
YES = frozenset({"yes", "right", "correct", "true", "1", "pass", "passed"})
NO = frozenset({"no", "wrong", "incorrect", "false", "0", "fail", "failed"})
PLACEHOLDERS = frozenset({"", "-"})
"""What stands where a prompt was left out."""


@dataclass(frozen=True)
class Published:
    """A data set whose columns mean something else than their names say.

    Attributes:
        name: the data set.
        columns: the columns by which it is known, `NAME:list` or `NAME:text` where the type tells.
        without: columns that it does not have.
        messages: the column of the conversation.
        prompt: the column of the prompt.
        response: the column of the response.
        calls: the column of tool calls that are the response, JSON text.
        chat: a column with a whole conversation as one marked text.
        prompt_id: the column that names the prompt.
        correct: the column that says whether the response is right.
    """

    name: str
    columns: tuple[str, ...]
    without: tuple[str, ...] = ()
    messages: str | None = None
    prompt: str | None = None
    response: str | None = None
    calls: str | None = None
    chat: str | None = None
    prompt_id: str | None = None
    correct: str | None = None


PUBLISHED = (
    # `messages` holds one of the generations.
    Published(
        "OpenR1-Math-220k", ("problem", "generations:list"), prompt="problem", response="generations", prompt_id="uuid"
    ),
    # `messages` holds the text that R1's replaced.
    Published("OpenThoughts-114k-math", ("conversations", "messages", "problem", "solution"), messages="conversations"),
    Published(
        "OpenThoughts-Agent", ("conversations", "trial_name", "episode"), messages="conversations", prompt_id="task"
    ),
    Published(
        "SWE-agent-trajectories", ("trajectory", "target", "instance_id"), messages="trajectory", correct="target"
    ),
    Published("xLAM function calling", ("query", "answers", "tools"), prompt="query", calls="answers"),
    Published("glaive function calling", ("chat:text",), without=("messages", "conversations"), chat="chat"),
)
