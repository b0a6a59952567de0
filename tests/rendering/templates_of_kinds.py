"""Chat templates of ours that do what stock ones of other families do, one kind of oddity each."""

from __future__ import annotations

from tests.rendering.test_templates import GEMMA2, LLAMA2, LLAMA31, MISTRAL, PLAIN, QWEN3, R1_DISTILL

_TEXT = (
    "{%- macro text(m) -%}{%- if m.content is string -%}{{- m.content -}}{%- elif m.content -%}"
    "{%- for part in m.content -%}{{- part.text -}}{%- endfor -%}{%- endif -%}{%- endmacro -%}"
)

# The generation prompt opens and closes a thought; the rendering of the last reply holds it, that of earlier ones does not.
CLOSED_CHANNEL = (
    _TEXT + "{{- bos_token -}}{%- for m in messages -%}"
    "{{- '<|turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' -}}"
    "{%- if m.role == 'assistant' and loop.last -%}{{- '<|channel>thought\n' ~ (m.reasoning_content or '') ~ '<channel|>' -}}"
    "{%- endif -%}{{- text(m) | trim ~ '<turn|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|turn>model\n<|channel>thought\n<channel|>' -}}{%- endif -%}"
)

# The prompt opens the thinking; a reply without thoughts is rendered with a response tag of its own.
THINKING_TOKENS = (
    _TEXT + "{%- for m in messages -%}{{- '<|START_OF_TURN_TOKEN|>' -}}"
    "{%- if m.role == 'assistant' -%}{{- '<|CHATBOT_TOKEN|>' -}}"
    "{%- if m.reasoning_content -%}{{- '<|START_THINKING|>' ~ m.reasoning_content ~ '<|END_THINKING|>' -}}{%- endif -%}"
    "{{- '<|START_RESPONSE|>' ~ text(m) ~ '<|END_RESPONSE|>' -}}"
    "{%- else -%}{{- '<|' ~ m.role | upper ~ '_TOKEN|>' ~ text(m) -}}{%- endif -%}{{- '<|END_OF_TURN_TOKEN|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_THINKING|>' -}}{%- endif -%}"
)

# The prompt begins the thinking in words; earlier replies lose what they thought.
PROSE = (
    _TEXT + "{%- for m in messages -%}{{- '<|begin_' ~ m.role ~ '|>\n' -}}"
    "{%- if m.role == 'assistant' and '[BEGIN FINAL RESPONSE]' in text(m) and not loop.last -%}"
    "{{- text(m).split('[BEGIN FINAL RESPONSE]')[-1] -}}"
    "{%- elif m.role == 'assistant' and loop.last and m.reasoning_content -%}"
    "{{- 'Here are my reasoning steps:\n' ~ m.reasoning_content ~ '\n[BEGIN FINAL RESPONSE]\n' ~ text(m) -}}"
    "{%- else -%}{{- text(m) -}}{%- endif -%}{{- '\n<|end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|begin_assistant|>\nHere are my reasoning steps:\n' -}}{%- endif -%}"
)

# No generation prompt but after a question, so that the header of other turns is known from questions alone.
PROMPT_AFTER_QUESTIONS = (
    _TEXT
    + "{%- for m in messages -%}{{- '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' ~ text(m) ~ '<|end_of_text|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt and messages[-1].role == 'user' -%}"
    "{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)

# Consecutive replies are one turn, of which the template closes the end alone.
MERGED_REPLIES = (
    _TEXT + "{%- for m in messages -%}"
    "{%- if loop.first or m.role != loop.previtem.role -%}{{- '<|' ~ m.role ~ '|>' -}}{%- endif -%}{{- text(m) -}}"
    "{%- if loop.last or m.role != loop.nextitem.role -%}{{- '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

# An empty answer is written as an empty think block.
NOTHING_IS_A_BLOCK = (
    _TEXT + "{%- for m in messages -%}{{- '<seed:bos>' ~ m.role ~ '\n' -}}"
    "{%- if m.role == 'assistant' and not text(m) -%}{{- '<seed:think></seed:think>' -}}{%- endif -%}"
    "{{- text(m) ~ '<seed:eos>' -}}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<seed:bos>assistant\n' -}}{%- endif -%}"
)

# Definitions, the date, the count of messages and another system text before everything, in every rendering otherwise.
CHANGING_HEAD = (
    _TEXT + "{{- 'It is ' ~ strftime_now('%d %B %Y') ~ ', ' ~ messages | length ~ ' messages. ' -}}"
    "{{- custom_instructions | default('') -}}"
    "{{- tools | tojson if tools -}}{%- for m in messages -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\n' ~ text(m) -}}{{- m.tool_calls | tojson if m.tool_calls -}}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)

# Marks that leave the end of the turn out, and marks that hold the header.
_MARKED = (
    _TEXT + "{%- for m in messages -%}{%- if m.role == 'assistant' -%}REPLY{%- else -%}"
    "{{- '<|im_start|>' ~ m.role ~ '\n' ~ text(m) ~ '<|im_end|>\n' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
MARKS_WITHOUT_END = _MARKED.replace(
    "REPLY", "{{- '<|im_start|>assistant\n' -}}{% generation %}{{- text(m) -}}{% endgeneration %}{{- '<|im_end|>\n' -}}"
)
MARKS_WITH_HEADER = _MARKED.replace(
    "REPLY", "{% generation %}{{- '<|im_start|>assistant\n' ~ text(m) ~ '<|im_end|>\n' -}}{% endgeneration %}"
)

KINDS: dict[str, str] = {
    "closed channel": CLOSED_CHANNEL,
    "thinking tokens": THINKING_TOKENS,
    "prose": PROSE,
    "prompt after questions": PROMPT_AFTER_QUESTIONS,
    "merged replies": MERGED_REPLIES,
    "nothing is a block": NOTHING_IS_A_BLOCK,
    "changing head": CHANGING_HEAD,
    "marks without end": MARKS_WITHOUT_END,
    "marks with header": MARKS_WITH_HEADER,
    "gemma-2": GEMMA2,
    "llama-2": LLAMA2,
    "llama-3.1": LLAMA31,
    "mistral": MISTRAL,
    "no control tokens": PLAIN,
    "qwen3": QWEN3,
    "r1-distill": R1_DISTILL,
}
