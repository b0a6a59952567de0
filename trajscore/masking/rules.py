"""Every rule of `mask`: which scored tokens of a trajectory are trained on, and how much. The template's own are in `labels`.

A rule is an expression over one row's token columns: N scored tokens in, N booleans or weights out. What depends on more than
the row (the ranges of a whole corpus) is given to it. To add one: a function and a `Rule` in `_TABLE`, with a `Parameter`
for each number that it can be given. The tests over the table cover it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal

import polars as pl

from trajscore.errors import UsageError, did_you_mean
from trajscore.masking.conflicts import conflict_weights
from trajscore.masking.labels import SCAFFOLDS
from trajscore.masking.noise import exponential_noise
from trajscore.masking.normalising import QUANTILE, ColumnRange, normalised
from trajscore.metrics.sentence_classes import BETA, probability_leads
from trajscore.options import Parameter, settle
from trajscore.schema import COLUMNS, Columns, topk_columns

Ranges = Mapping[str, ColumnRange]
Kind = Literal["share", "draw", "tokens", "weights"]

TIP = "arXiv 2604.14084 (TIP)"
DIVERGENCES = ("kl_student_teacher", "kl_teacher_student", "js")
DECOUPLED = ("tckd", "nckd")
"""The two parts of KL(teacher || student) of DKD (arXiv 2203.08679), by the probability of the written token."""

BY = Columns(
    (
        *(
            column
            for name, column in COLUMNS.items()
            if name.removesuffix("_topk") in DIVERGENCES or column.flag.startswith("--teacher MODEL --extra")
        ),
        *(replace(COLUMNS["kl_teacher_student"], name=name) for name in DECOUPLED),
    )
)
"""What can rank: columns, those of extras with any value, and what is made of columns."""

_ENTROPY = "student_entropy"
_SAMPLER, _SCAFFOLD_SAMPLER = "sampler_logprob", "scaffold_sampler_logprob"
_LEAST = 1e-12
_LARGEST_RATIO = 2.0
_ANSWER = 2
_CLIP = Parameter(
    "clip", QUANTILE, "quantile at which the entropy is clipped before it is normalised", above=0, at_most=1
)
_TOKEN = pl.element()


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        name: the name users type.
        kind: `share` keeps the tokens with the largest values, `draw` draws with probability proportional to them, both
            `keep` of them; `tokens` keeps those where the value is true; `weights` keeps all, each with its value.
        value: builds the list of values of each row from the options and the corpus's ranges.
        columns: score columns that are read; a divergence that `by` names comes on top.
        source: where it was published.
        meaning: one sentence for tables.
        parameters: what can be given with `NAME,KEY=VALUE`, or as options of these names.
        clipped: columns that are normalised, and whether what lies above the quantile `clip` is clipped.
        compares: whether it compares the rows of a prompt by `correct`, see `conflicts`.
        caution: what has to be known before its masks are trained on; empty where nothing has.
        signed: whether its weights may be negative; those of all others are at least 0.
        scaffold: builds the weights of the scaffold tokens, where they are not 1.
        scaffold_columns: what that reads, beside `scaffold_positions` and `positions`.
    """

    name: str
    kind: Kind
    value: Callable[[RuleSettings, Ranges], pl.Expr]
    columns: tuple[str, ...]
    source: str
    meaning: str
    parameters: tuple[Parameter, ...] = ()
    clipped: Mapping[str, bool] = field(default_factory=dict)
    signed: bool = False
    scaffold: Callable[[RuleSettings], pl.Expr] | None = None
    scaffold_columns: tuple[str, ...] = ()
    compares: bool = False
    caution: str = ""

    @property
    def takes_share(self) -> bool:
        """Whether it keeps a share of the tokens."""
        return self.kind in ("share", "draw")

    @property
    def soft(self) -> bool:
        """Whether it gives weights."""
        return self.kind == "weights"


@dataclass(frozen=True)
class RuleSettings:
    """A rule and its settings.

    Attributes:
        rule: name of the rule.
        keep: share of each trajectory's scored tokens, in (0, 1]: k = max(1, floor(keep * N)) of N.
        seed: for rules that draw.
        scope: over what values are normalised: `corpus` (all rows that are masked) or `trajectory`.
        given: the rule's parameters by name; None stands for one that was not given.
        scaffold: what gets a label besides scored tokens, a key of `labels.SCAFFOLDS`.
        soft_targets: whether a teacher's best entries are carried along, which need columns of their own.

    Raises:
        UsageError: a value is out of range, lacks, or is one that the rule does not take.
    """

    rule: str
    keep: float | None = None
    seed: int = 0
    scope: str = "corpus"
    given: Mapping[str, Any] = field(default_factory=dict)
    scaffold: str = "marker"
    soft_targets: bool = False

    def __post_init__(self) -> None:
        rule = find_rule(self.rule)
        if self.scaffold not in SCAFFOLDS:
            raise UsageError(f"--scaffold {self.scaffold!r} is unknown.", did_you_mean(self.scaffold, SCAFFOLDS))
        _check_keep(rule, self.keep)
        if {"low", "high"} <= self.options.keys():
            _check_band(self.options["low"], self.options["high"])

    @property
    def definition(self) -> Rule:
        """The rule itself."""
        return RULES[self.rule]

    @property
    def options(self) -> dict[str, Any]:
        """The rule's parameters with the values in force."""
        return settle(f"rule {self.rule!r}", self.definition.parameters, self.given)

    @property
    def columns(self) -> tuple[str, ...]:
        """Score columns that are read, beside `input_ids` and `positions`."""
        options = self.options
        by = _columns_of(options["by"]) if "by" in options else ()
        targets = topk_columns("teacher") if self.soft_targets else ()
        return (*self.definition.columns, *by, *([_SAMPLER] if options.get("importance") else []), *targets)

    @property
    def scaffold_columns(self) -> tuple[str, ...]:
        """Score columns of scaffold tokens that are read."""
        targets = topk_columns("teacher", scaffold=True) if self.soft_targets else ()
        sampler = [_SCAFFOLD_SAMPLER] if self.options.get("importance") else []
        return (*self.definition.scaffold_columns, *sampler, *targets) if SCAFFOLDS[self.scaffold] else ()

    @property
    def may_be_negative(self) -> bool:
        """Whether weights may be below 0."""
        return self.definition.signed and bool(self.options.get("signed", True))

    @property
    def clipped(self) -> Mapping[str, bool]:
        """Columns whose range over the corpus is needed, and whether they are clipped."""
        return self.definition.clipped if self.scope == "corpus" else {}

    def quantile(self, column: str) -> float:
        """At which quantile a normalised column is clipped; 1 where it is not."""
        return float(self.options["clip"]) if self.definition.clipped[column] else 1.0

    def kept(self, ranges: Ranges) -> pl.Expr:
        """Which scored tokens are trained on: [N] booleans, one list per row.

        Args:
            ranges: the corpus's range of each column in `clipped`.
        """
        rule, value = self.definition, self.definition.value(self, ranges)
        if rule.kind == "share":
            return value.list.eval(_TOKEN.rank("ordinal", descending=True) <= _count(self.keep))
        if rule.kind == "draw":
            keys = exponential_noise(self.seed) / value.list.eval(_TOKEN.clip(0))
            return keys.list.eval(_TOKEN.rank("ordinal") <= _count(self.keep))
        if rule.kind == "weights":
            return value.list.eval(_TOKEN.is_not_null())
        return value

    def weight(self, ranges: Ranges) -> pl.Expr:
        """The weight of each scored token, for a soft rule: [N] float32, finite, at least 0 unless `may_be_negative`."""
        return self.definition.value(self, ranges).cast(pl.List(pl.Float32))

    def scaffold_weight(self) -> pl.Expr | None:
        """The weight of each scaffold token, float32; None where all have the weight 1."""
        make = self.definition.scaffold if SCAFFOLDS[self.scaffold] else None
        return None if make is None else make(self).cast(pl.List(pl.Float32))


def _columns_of(by: str) -> tuple[str, ...]:
    """What ranks, as stored columns."""
    return ("student_surprisal", "teacher_surprisal", "kl_teacher_student") if by in DECOUPLED else (by,)


def find_rule(name: str) -> Rule:
    """The rule of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in RULES:
        raise UsageError(f"rule {name!r} is unknown.", did_you_mean(name, RULES))
    return RULES[name]


def _check_keep(rule: Rule, keep: float | None) -> None:
    if not rule.takes_share:
        if keep is not None:
            raise UsageError(f"the rule {rule.name!r} takes no --keep.", _taken(rule))
    elif keep is None:
        raise UsageError(f"the rule {rule.name!r} needs --keep.", "Give the share of tokens to keep, such as 0.5.")


def _check_band(low: float | None, high: float | None) -> None:
    if low is None and high is None:
        raise UsageError("the rule 'surprisal_band' needs --low or --high.", "Give one end in nats, or both.")
    if low is not None and high is not None and low > high:
        raise UsageError(f"--low {low} is above --high {high}.", "Give the lower end first.")


def _taken(rule: Rule) -> str:
    own = [*(["--keep"] if rule.takes_share else []), *(each.name for each in rule.parameters)]
    return f"It takes {', '.join(own)}." if own else "It takes none."


def _count(keep: float | None) -> pl.Expr:
    """How many of a list's elements are kept: max(1, floor(keep * N))."""
    # Through the decimal text: 0.29 * 100 is 28.999999999999996 in binary floating point, and 29 is meant. The limit keeps
    # the product within 128 bits; it changes no count, because no list is so long.
    share = Fraction(str(keep)).limit_denominator(10**18)
    return (pl.len().cast(pl.Int128) * share.numerator // share.denominator).clip(1).cast(pl.UInt32)


def _float64(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.List(pl.Float64))


def entropy(_: RuleSettings, __: Ranges) -> pl.Expr:
    """H_k, the entropy of the student's prediction, nats."""
    return _float64(_ENTROPY)


def divergence(options: RuleSettings, _: Ranges) -> pl.Expr:
    """The divergence that `by` names, nats."""
    by = options.options["by"]
    return _decoupled(by) if by in DECOUPLED else _float64(by)


def _decoupled(part: str) -> pl.Expr:
    """The Kullback-Leibler divergence of the written token against all others, or that among the others alone.

    With q and p the token's probability under teacher and student: tckd = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), and nckd
    = (KL(teacher || student) - tckd) / (1 - q); 0 where the others have no probability to speak of.
    """
    q, p = (
        _float64(f"{role}_surprisal").list.eval((-_TOKEN).exp().clip(_LEAST, 1 - _LEAST))
        for role in ("teacher", "student")
    )
    others, theirs = q.list.eval(1 - _TOKEN), p.list.eval(1 - _TOKEN)
    written = q * (q / p).list.eval(_TOKEN.log()) + others * (others / theirs).list.eval(_TOKEN.log())
    if part == "tckd":
        return written.list.eval(_TOKEN.clip(0))
    rest = (_float64("kl_teacher_student") - written) / others
    return rest.list.eval(_TOKEN.clip(0))


def soft_or(options: RuleSettings, ranges: Ranges) -> pl.Expr:
    """h + d - h d of normalised entropy h and KL(student || teacher) d: large where either is (TIP).

    h is clipped at its quantile `clip` (0.98) before min-max, d is not.

    Source: arXiv 2604.14084.
    """
    h = _normalised(options, ranges, _ENTROPY)
    d = _normalised(options, ranges, "kl_student_teacher")
    return h + d - h * d


def q3(options: RuleSettings, ranges: Ranges) -> pl.Expr:
    """KL(teacher || student) (1 - h): confident tokens that the teacher contradicts, TIP's third quadrant.

    Source: arXiv 2604.14084.
    """
    confidence = _normalised(options, ranges, _ENTROPY).list.eval(1 - _TOKEN)
    return _float64("kl_teacher_student") * confidence


def _normalised(options: RuleSettings, ranges: Ranges, column: str) -> pl.Expr:
    within = ranges[column] if options.scope == "corpus" else None
    return normalised(column, options.quantile(column), within)


def confidence_gap(options: RuleSettings, _: Ranges) -> pl.Expr:
    """sigmoid((H_student - H_teacher) / tau): near 1 where the student is uncertain and the teacher is not.

    Source: arXiv 2603.13260 (TSD-KD); the authors' code has tau = 1.
    """
    gap = _float64(_ENTROPY) - _float64("teacher_entropy")
    return gap.list.eval(1 / (1 + (-_TOKEN / options.options["tau"]).exp()))


def teacher_sentences(options: RuleSettings, _: Ranges) -> pl.Expr:
    """Whether the token starts in a sentence with p_teacher - p_student > beta, p the geometric mean of its tokens.

    A sentence without a probability under either model is none of the teacher's.

    Source: arXiv 2512.20908, arXiv 2601.09088.
    """
    above = _TOKEN.fill_nan(None).gt(options.options["beta"]).fill_null(False)
    of_sentence = probability_leads().list.eval(above)
    return of_sentence.list.gather(pl.col("sentence"))


def surprisal_band(options: RuleSettings, _: Ranges) -> pl.Expr:
    """Whether low <= surprisal <= high, nats."""
    low, high = options.options["low"], options.options["high"]
    return _float64("student_surprisal").list.eval(
        _TOKEN.is_between(0.0 if low is None else low, math.inf if high is None else high)
    )


def opd_reward(options: RuleSettings, _: Ranges) -> pl.Expr:
    """ln p_teacher - ln p_student of the token: the reward of on-policy distillation, whose mean over the student's own text is
    minus an unbiased estimate of KL(student || teacher).

    It is clipped to `bound`; then come the factors min(2, p_student / p_sampler) with `importance` and `decay` to the number of
    tokens since the first scored one.

    Source: the advantage of slime's and TRL's on-policy distillation; the ratio's limit is TRL's.
    """
    return _reward(options, "student_surprisal", "teacher_surprisal", _SAMPLER, "positions")


def opd_reward_of_scaffold(options: RuleSettings) -> pl.Expr:
    """The same for what the student wrote besides text, such as its end-of-turn marker."""
    return _reward(options, "scaffold_surprisal", "teacher_scaffold_surprisal", _SCAFFOLD_SAMPLER, "scaffold_positions")


def _reward(settings: RuleSettings, student: str, teacher: str, sampler: str, places: str) -> pl.Expr:
    options = settings.options
    bound = math.inf if options["bound"] is None else options["bound"]
    reward = (_float64(student) - _float64(teacher)).list.eval(_TOKEN.clip(-bound if options["signed"] else 0.0, bound))
    if options["importance"]:
        log_ratio = _float64(student).list.eval(-_TOKEN) - _float64(sampler)
        reward *= log_ratio.list.eval(_TOKEN.exp().clip(upper_bound=_LARGEST_RATIO))
    if options["decay"] == 1:
        return reward
    since = _float64(places) - _float64("positions").list.min()
    return reward * since.list.eval(pl.lit(options["decay"]).pow(_TOKEN.clip(0)))


def yet_to_learn(options: RuleSettings, _: Ranges) -> pl.Expr:
    """Whether s_student - s_distilled <= tau: the distilled model is no surer of the token than the student was (T3S).

    Source: arXiv 2601.10348, where the distilled model is the checkpoint of a training on the same data at its lowest accuracy.
    """
    rise = _float64("student_surprisal") - _float64("distilled_surprisal")
    return rise.list.eval(options.options["tau"] >= _TOKEN)


def probable(options: RuleSettings, _: Ranges) -> pl.Expr:
    """Whether p > tau, p the student's probability of the token (ProFit).

    Source: arXiv 2601.09195.
    """
    return _probability().list.eval(options.options["tau"] < _TOKEN)


def probability(_: RuleSettings, __: Ranges) -> pl.Expr:
    """p, the student's probability of the token, as its weight (DFT).

    Source: arXiv 2508.05629.
    """
    return _probability()


def _probability() -> pl.Expr:
    return _float64("student_surprisal").list.eval((-_TOKEN).exp())


def opener(options: RuleSettings, _: Ranges) -> pl.Expr:
    """Whether the token is in the smallest prefix that holds a share of the row's entropy; the first token always is.

    Source: arXiv 2603.13260 (TSD-KD), per row, where the authors' code takes one length for a whole batch.
    """
    return _float64(_ENTROPY).list.eval(
        (_TOKEN.cum_sum().shift(1) < options.options["share"] * _TOKEN.cum_sum().last()).fill_null(True)
    )


def conflict(_: RuleSettings, __: Ranges) -> pl.Expr:
    """2 in the runs, from either end, that a correct row shares with wrong ones, 0 there in the wrong rows, else 1 (GTPO).

    Source: arXiv 2508.03772 and its code.
    """
    return conflict_weights()


def answers(_: RuleSettings, __: Ranges) -> pl.Expr:
    """Whether the token belongs to the answer."""
    return pl.col("phase").list.eval(_TOKEN == _ANSWER)


def thinking(_: RuleSettings, __: Ranges) -> pl.Expr:
    """Whether the token belongs to the thinking or marks its bounds."""
    return pl.col("phase").list.eval(_TOKEN != _ANSWER)


def every(_: RuleSettings, __: Ranges) -> pl.Expr:
    """True for every scored token."""
    return pl.col("positions").list.eval(_TOKEN.is_not_null())


_TABLE = (
    Rule("all", "tokens", every, (), "plain SFT", "every scored token"),
    Rule("answers", "tokens", answers, ("phase",), "plain SFT", "the answer after the thinking"),
    Rule(
        "thinking", "tokens", thinking, ("phase",), "plain SFT", "the thinking with its markers; what `answers` leaves"
    ),
    Rule(
        "prefix",
        "share",
        every,
        (),
        "arXiv 2512.21002",
        "the first --keep of the tokens; half of them kept 91 % of what the whole gave in the source",
    ),
    Rule(
        "opener",
        "tokens",
        opener,
        (_ENTROPY,),
        "arXiv 2603.13260 (TSD-KD)",
        "the smallest prefix that holds a tenth of the row's entropy",
        (Parameter("share", 0.1, "share of the row's entropy", above=0, at_most=1),),
    ),
    Rule("entropy", "share", entropy, (_ENTROPY,), TIP, "the student's most uncertain tokens"),
    Rule(
        "entropy_sample",
        "draw",
        entropy,
        (_ENTROPY,),
        f"{TIP}, Table 3",
        "tokens drawn without replacement, with probability proportional to the student's entropy",
    ),
    Rule(
        "divergence",
        "share",
        divergence,
        (),
        f"{TIP}, div-only ablation",
        "the tokens on which student and teacher differ most",
        (
            Parameter(
                "by",
                "kl_student_teacher",
                "the column that ranks, or tckd or nckd",
                choices=BY,
            ),
        ),
    ),
    Rule(
        "soft_or",
        "share",
        soft_or,
        (_ENTROPY, "kl_student_teacher"),
        f"{TIP}, soft-OR score",
        "tokens that are uncertain or contradicted by the teacher: h + d - h d, both from 0 to 1",
        (_CLIP,),
        {_ENTROPY: True, "kl_student_teacher": False},
    ),
    Rule(
        "soft_or_sample",
        "draw",
        soft_or,
        (_ENTROPY, "kl_student_teacher"),
        f"{TIP}, soft-OR score with the sampler of Table 3",
        "tokens drawn without replacement, with probability proportional to `soft_or`",
        (_CLIP,),
        {_ENTROPY: True, "kl_student_teacher": False},
    ),
    Rule(
        "q3",
        "share",
        q3,
        (_ENTROPY, "kl_teacher_student"),
        f"{TIP}, Q3-only score",
        "confident tokens that the teacher contradicts: KL(teacher || student) (1 - h)",
        (_CLIP,),
        {_ENTROPY: True},
    ),
    Rule(
        "confidence_gap",
        "weights",
        confidence_gap,
        (_ENTROPY, "teacher_entropy"),
        "arXiv 2603.13260 (TSD-KD)",
        "weight sigmoid((student's entropy - teacher's entropy) / tau) on every scored token",
        (Parameter("tau", 1.0, "temperature of the gate, nats", above=0),),
    ),
    Rule(
        "teacher_sentences",
        "tokens",
        teacher_sentences,
        ("student_sentence_logprob", "teacher_sentence_logprob", "sentence"),
        "arXiv 2512.20908; arXiv 2601.09088 (DASD)",
        "tokens of sentences that the teacher finds likelier than the student by more than beta",
        (
            Parameter(
                "beta", BETA, "difference of sentence probabilities above which the teacher leads", at_least=0, below=1
            ),
        ),
    ),
    Rule(
        "probable",
        "tokens",
        probable,
        ("student_surprisal",),
        "arXiv 2601.09195 (ProFit)",
        "tokens that the student gives a probability above tau; the source asks the model in training, this the one before",
        (
            Parameter(
                "tau", 0.1, "probability that is not enough; the source's code trains with 0.1", at_least=0, below=1
            ),
        ),
    ),
    Rule(
        "probable_soft",
        "weights",
        probability,
        ("student_surprisal",),
        "arXiv 2508.05629 (DFT)",
        "weight p on every scored token; the source asks the model in training, this the one before",
    ),
    Rule(
        "yet_to_learn",
        "tokens",
        yet_to_learn,
        ("student_surprisal", "distilled_surprisal"),
        "arXiv 2601.10348 (T3S)",
        "tokens of which a checkpoint is no surer than the student was",
        (Parameter("tau", 0.0, "how much surer the checkpoint may have become, nats; the source gives no number"),),
        caution="--distilled has to be a checkpoint of the student, trained on this data, where its accuracy is lowest: with a "
        "finished model the rule keeps what training could not teach",
    ),
    Rule(
        "conflict",
        "weights",
        conflict,
        (),
        "arXiv 2508.03772 (GTPO)",
        "weight 2 where a correct row says the same as a wrong one, from the start or the end on; 0 there in the wrong row",
        compares=True,
        caution="wrong rows keep weight 1 elsewhere, for trainers that give them a negative advantage; for plain SFT leave "
        "them out with --selected",
    ),
    Rule(
        "surprisal_band",
        "tokens",
        surprisal_band,
        ("student_surprisal",),
        "the bounds are yours",
        "tokens whose surprisal lies from --low to --high",
        (
            Parameter("low", None, "smallest surprisal kept, nats", at_least=0),
            Parameter("high", None, "largest surprisal kept, nats", at_least=0),
        ),
    ),
    Rule(
        "opd_reward",
        "weights",
        opd_reward,
        ("student_surprisal", "teacher_surprisal"),
        "on-policy distillation as slime, TRL and Tinker do it; decay after arXiv 2606.22600, in a form of ours",
        "weight ln p_teacher - ln p_student, which may be negative, on every token of the student's own text",
        (
            Parameter("bound", None, "largest size of a reward, nats", above=0),
            Parameter("signed", True, "whether negative rewards stay; else they are 0"),
            Parameter("decay", 1.0, "factor for each token after the first scored one", above=0, at_most=1),
            Parameter("importance", False, "whether to multiply by min(2, p_student / p_sampler)"),
        ),
        signed=True,
        scaffold=opd_reward_of_scaffold,
        scaffold_columns=("scaffold_surprisal", "teacher_scaffold_surprisal"),
    ),
)

RULES: dict[str, Rule] = {rule.name: rule for rule in _TABLE}
"""Every rule by name, in the order in which it is listed."""
