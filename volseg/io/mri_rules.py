"""What a series says of itself -> T1, T1c, T2, STIR, or in words why it is none of them. A table of rules, no files.

The names win over the times, because one TR/TE range serves several contrasts; but where a name and its times exclude
each other, neither is believed. The ranges are those of textbook spin-echo imaging at 1.5 and 3 T (T1: TR below 1200
and TE below 40 ms; T2: TR above 1800 and TE above 60 ms; STIR: TI of 100-260 ms, ln 2 times the T1 of fat).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from volseg.labels import MriChannel

Range = tuple[float, float]
ANY: Range = (0.0, float("inf"))


@dataclass(frozen=True)
class Evidence:
    """What is known of one series. `text` is description, protocol and sequence name, or a file's name; times in ms.

    `agent`: a contrast agent is named in its tag. `fat_saturated`, `gradient_echo`: the header says so.
    """

    text: str = ""
    tr_ms: float | None = None
    te_ms: float | None = None
    ti_ms: float | None = None
    agent: bool = False
    fat_saturated: bool = False
    gradient_echo: bool = False


@dataclass(frozen=True)
class Rule:
    """One line of the table. Every condition that is set must hold; a range asks for a known time inside it.

    `gives` is a channel, or None where the series is recognised as something else and `because` names it.
    `says` must be found in the text and `never` must not (regular expressions on the `plain` text); `tag` asks for a
    property of the Evidence. `te_ms` and so on are needed; `if_te_ms` and so on hold where the header is silent too.
    """

    name: str
    gives: MriChannel | None
    because: str = ""
    says: str = ""
    never: str = ""
    tag: str = ""
    tr_ms: Range | None = None
    te_ms: Range | None = None
    ti_ms: Range | None = None
    # What the times must not contradict, once the name has spoken.
    if_te_ms: Range = ANY
    if_ti_ms: Range = ANY
    nameless: bool = False
    examples: tuple[str | Evidence, ...] = field(default=(), compare=False)


# Words are looked for between anything that is no letter or digit; T1 and T2 may stand inside a word (SagT1, t1tse),
# but not before a digit (T12 is a vertebra) and not as a vertebra range (C2-T1), which `plain` takes out.
T1 = r"(?:t1|\bmp ?rage|\bspgr|\bfspgr|\bbravo\b)(?![0-9])"
T2 = r"t2(?![0-9*]|s\b| ?star)"
STIR = r"\bs?stir|\btirm|\bt2 ?ir\b|\bturbo ?ir|\bshort ?ti\b"
FAT = r"\bfs\b|\bfat ?sat|\bfatsat|\bspair\b|\bspir\b|\bchess\b|\bwater\b|\bideal\b|\bdixon\b|\bmdixon\b"
BEFORE = r"\bpre\b|\bpre ?(?:contrast|gd|km)|\bnativ|\bohne\b|\bwithout\b|\bw/?o\b|\bnon ?c|\bunenhanced"
AFTER = (
    r"\bpost\b|\bpost ?(?:contrast|gd|gad|km)|\+ ?c\b|\bc ?\+|\+ ?(?:gd|gad|km)|\bgd\b|\bgad|\bkm\b|\bce\b|\bkontrast"
    r"|\bcontrast|\benhanced|\bce ?gad|\bt1c\b|\bt1ce\b|\bt1gd\b|\bt1 ?c\b|\bp ?c\b|\bdotarem|\bmdc\b|\bmit km"
)
NONE_OF_OURS = (
    ("a mask or label map", r"\bseg\b|\bdseg\b|\bmask|\bmsk\b|\blabell?ed\b|\blabels\b|\brois?\b|\bannot"),
    ("a localizer", r"\bloc\b|\blocali[sz]er|\bscout|\bsurvey|\bplan scan|\b3 ?plane|\btopogram"),
    ("diffusion", r"\bdwi\b|\bdti\b|\badc\b|\bdiff|\btrace ?w?\b|\bb ?[0-9]{2,4}\b|\bepi\b|\bresolve\b|\bivim"),
    ("a subtraction", r"\bsub\b|\bsubtr"),
    ("a projection", r"\bmip\b|\bmpr proj|\bminip\b"),
    ("a map", r"\bmap\b|\bt[12]map|\bmapit|\bfat ?frac|\bpdff\b|\bquant|\bperf|\bdce\b|\bttp\b|\brcbv\b"),
    ("an angiogram or flow study", r"\btof\b|\bmra\b|\bangio|\bflow\b|\bcine\b|\bpc ?mr"),
    ("a myelogram or steady-state sequence", r"\bmyel|\bciss|\bfiesta|\bbffe\b|\bb ?ffe\b|\btrufi|\bbalanced\b"),
    ("T2*, a gradient echo", r"t2 ?\*|t2s\b|t2 ?star|\bmedic\b|\bmerge\b|\bswi\b|\bswan\b|\bt2 ?(?:w )?(?:gre|ffe)\b"),
    ("an opposed-phase, in-phase or fat image", r"\bopp|\bout ?(?:of )?phase|\bin ?phase|\bfat\b(?! ?(?:sat|sup))"),
    ("spectroscopy", r"\bmrs\b|\bspectro|\bpress\b"),
)
NEITHER_FS = "T2 with fat suppression, neither T2 nor STIR"
T1_FS = "T1 with fat suppression and no contrast agent, in which marrow is dark"

RULES: tuple[Rule, ...] = (
    *(Rule(f"named {what}", None, what, says=words) for what, words in NONE_OF_OURS),
    Rule("fluid attenuated", None, "FLAIR", says=r"\bflair|\bdark ?fluid|\bfluid att", never=r"t1(?![0-9])",
         examples=("t2_tirm_tra_dark-fluid", "Ax FLAIR")),
    Rule("named STIR", "STIR", says=STIR, never=r"t1(?![0-9])", if_ti_ms=(80, 350),
         examples=("Sag STIR", "t2_tirm_sag", "STIR_longTE SENSE", "T2 STIR sag", "sub-01_acq-stir_T2w")),
    Rule("named T1 and T2", None, "named both T1 and T2", says=rf"{T1}.*{T2}|{T2}.*{T1}", examples=("T1 T2 dual",)),
    Rule("named before and after contrast", None, "named as both before and after contrast",
         says=r"\bpre\b.*\bpost\b|\bpost\b.*\bpre\b", examples=("T1 pre and post",)),
    Rule("proton density", None, "proton density", says=r"\bpd ?w?\b|\bproton", never=rf"{T1}|{T2}",
         examples=("PDw_SPAIR cor", "pd_tse_sag")),
    Rule("T2 with fat suppression by name", None, NEITHER_FS, says=T2, tag="named_fat_saturated",
         examples=("t2_tse_fs_sag", "T2W_SPAIR", "Sag T2 fat sat", "t2_tse_dixon_sag_W")),
    Rule("T1 named as after contrast", "T1c", says=rf"(?=.*{T1})(?=.*(?:{AFTER}))", never=BEFORE, if_te_ms=(0, 40),
         examples=("t1_tse_sag_fs_KM", "Sag T1 +C", "T1 POST GAD", "ce-gadolinium_T1w", "T1c", "Sag T1 FS C+")),
    Rule("T1 with fat suppression, named as before contrast", None, T1_FS, says=rf"(?=.*{T1})(?=.*(?:{BEFORE}))",
         tag="named_fat_saturated", examples=("T1 FS pre", "t1_fs_ohne KM")),
    Rule("T1 named as before contrast", "T1", says=rf"(?=.*{T1})(?=.*(?:{BEFORE}))", if_te_ms=(0, 40),
         examples=("T1 nativ", "t1_tse_sag pre", "T1 w/o contrast", "T1 without contrast")),
    Rule("named T1, agent in the tag", "T1c", says=T1, tag="agent", if_te_ms=(0, 40),
         examples=(Evidence("t1_tse_sag", agent=True), Evidence("t1_tse_fs_sag", agent=True))),
    Rule("T1 with fat suppression by name", None, T1_FS, says=T1, tag="named_fat_saturated",
         examples=("T1 FS sag", "t1_vibe_dixon_sag_W")),
    Rule("T1 with fat suppression by tag", None, T1_FS, says=T1, tag="fat_saturated",
         examples=(Evidence("t1_tse_sag", fat_saturated=True),)),
    Rule("named T1", "T1", says=T1, if_te_ms=(0, 40),
         examples=("t1_tse_sag", "SagT1", "T1W_TSE", "sub-3_T1w", "MPRAGE", "Sag T1 C2-T1", "Sag T1 FLAIR",
                   "IBSI_1_STS_015_MR_T1_image", "t1_tirm_sag_dark-fluid", Evidence("T1", tr_ms=550, te_ms=9))),
    Rule("T2 with fat suppression by tag", None, NEITHER_FS, says=T2, tag="fat_saturated",
         examples=(Evidence("t2_tse_sag", fat_saturated=True),)),
    Rule("named T2, a gradient echo by tag", None, "T2*, a gradient echo", says=T2, tag="gradient_echo",
         examples=(Evidence("T2 ax", te_ms=14, gradient_echo=True),)),
    Rule("named T2", "T2", says=T2, if_te_ms=(50, 1000),
         examples=("t2_tse_sag", "T2W_TSE SENSE", "sub-mri_label-6_T2w", "FRFSE T2 Sag T12-S1", "T2 SPACE",
                   Evidence("T2", tr_ms=3500, te_ms=102))),
    Rule("nameless, TI of STIR", "STIR", nameless=True, tr_ms=(1500, 20000), ti_ms=(100, 260),
         examples=(Evidence("sag spine", tr_ms=4000, te_ms=60, ti_ms=160),)),
    Rule("nameless, other inversion", None, "an inversion recovery sequence that is not STIR", nameless=True,
         ti_ms=(260, 1e5), examples=(Evidence("sag", tr_ms=9000, te_ms=110, ti_ms=2500),)),
    Rule("nameless gradient echo", None, "a gradient echo without a name", nameless=True, tag="gradient_echo",
         examples=(Evidence("ax", tr_ms=30, te_ms=5, gradient_echo=True),)),
    Rule("nameless, times of T1, agent in the tag", "T1c", nameless=True, tag="agent", tr_ms=(250, 1200), te_ms=(0, 40),
         examples=(Evidence("sag", tr_ms=600, te_ms=10, agent=True),)),
    Rule("nameless, times of T1, fat-saturated", None, T1_FS, nameless=True, tag="fat_saturated", tr_ms=(250, 1200),
         te_ms=(0, 40), examples=(Evidence("sag", tr_ms=600, te_ms=10, fat_saturated=True),)),
    Rule("nameless, times of T1", "T1", nameless=True, tr_ms=(250, 1200), te_ms=(0, 40),
         examples=(Evidence("lumbar sag", tr_ms=600, te_ms=10),)),
    Rule("nameless, times of T2, fat-saturated", None, NEITHER_FS, nameless=True, tag="fat_saturated",
         tr_ms=(1800, 20000), te_ms=(60, 300), examples=(Evidence("sag", tr_ms=3500, te_ms=90, fat_saturated=True),)),
    Rule("nameless, times of T2", "T2", nameless=True, tr_ms=(1800, 20000), te_ms=(60, 300),
         examples=(Evidence("lumbar sag", tr_ms=3500, te_ms=100),)),
    Rule("nameless, times of proton density", None, "proton density by its times", nameless=True, tr_ms=(1200, 20000),
         te_ms=(0, 60), examples=(Evidence("sag", tr_ms=3000, te_ms=25),)),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """`channel` and the name of the rule that gave it; or None and, in `why`, what the series is instead."""

    channel: MriChannel | None
    rule: str
    why: str


def plain(text: str) -> str:
    """Lower case, separators as blanks; without vertebra ranges (C2-T1, T12/L1) and BIDS's sub- and ses- entities."""
    low = re.sub(r"(?:^|(?<=_))(?:sub|ses)-[a-z0-9]+(?=_|$)", " ", text.lower())
    low = re.sub(r"\b[ctls][0-9]{1,2} ?(?:-|–|/|to|bis) ?[ctls][0-9]{1,2}\b", " ", low)
    return re.sub(r"[\s_.,;:()\[\]\\-]+", " ", low).strip()


def says_something(text: str) -> bool:
    """Whether a name speaks of a contrast, ours or another."""
    words = plain(text)
    return any(re.search(w, words) for w in (T1, T2, STIR, r"\bpd|\bflair|\bfluid att", *(w for _, w in NONE_OF_OURS)))


def channel_of(evidence: Evidence) -> Verdict:
    """The first rule that fits decides; one whose times speak against it gives no channel."""
    text = plain(evidence.text)
    named = bool(re.search(rf"{T1}|{T2}|{STIR}", text))
    rule = next((r for r in RULES if _fits(r, evidence, text, named)), None)
    if rule is None:
        return Verdict(None, "", "neither its name nor its times say T1, T1c, T2 or STIR")
    if rule.gives is None:
        return Verdict(None, rule.name, rule.because)
    for what, value, bounds in (("TE", evidence.te_ms, rule.if_te_ms), ("TI", evidence.ti_ms, rule.if_ti_ms)):
        if value is not None and value > 0 and not bounds[0] <= value <= bounds[1]:
            return Verdict(None, rule.name, f"named {rule.gives}, but {what} of {value:g} ms speaks against it")
    return Verdict(rule.gives, rule.name, rule.name)


def _fits(rule: Rule, evidence: Evidence, text: str, named: bool) -> bool:
    if rule.nameless and named:
        return False
    if (rule.says and not re.search(rule.says, text)) or (rule.never and re.search(rule.never, text)):
        return False
    if rule.tag == "named_fat_saturated":
        if not re.search(FAT, text):
            return False
    elif rule.tag and not getattr(evidence, rule.tag):
        return False
    times = ((evidence.tr_ms, rule.tr_ms), (evidence.te_ms, rule.te_ms), (evidence.ti_ms, rule.ti_ms))
    return all(need is None or (t is not None and need[0] <= t <= need[1]) for t, need in times)
