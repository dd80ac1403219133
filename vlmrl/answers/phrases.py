"""Words by which a reply announces its answer, corrects itself or concludes, in the
languages that models answer in. Each pattern is linear in the length of the text."""

import re

# -- announcing ------------------------------------------------------------------------

_FINAL = (
    r"\b(?:final|ultimate)\s+(?:answer|choice|option|decision)\b",
    r"\b(?:my|so|thus|hence|therefore),?\s+(?:the\s+)?final\b",
    r"\bfinal(?=\s*[:：])",
    r"最终答案",
)
_NOUNS = (
    r"\b(?:answer|ans|solution|verdict|conclusion)\b",
    r"\bcorrect (?:option|choice|one|letter|response)\b",
    r"\b(?:right|best) (?:option|choice|one|match|description)\b|\bthe best(?= is\b)",
    r"\bmy (?:choice|pick|guess|selection)\b",
    r"\b(?:one|option|choice|description|statement) that [^.,;!?\n]{1,40}?(?=\s+is\b)",
    r"\brespuesta\b|\bopción correcta\b|\bresposta\b|\b(?:alternativa|opção) correta\b",
    r"\bréponse\b|\boption correcte\b|\bbonne réponse\b|\bantwort\b|\brichtig ist\b",
    r"\brisposta\b|\bopzione corretta\b|\bantwoord\b|\bsvar(?:et)?\b|\bodpověď\b",
    r"\bodpowied(?:ź|zi[aą])\b|\bcevap\b|\byanıt\b|\bđáp án\b|\bjawaban(?:nya)?\b",
    r"\bответ(?:ом)?\b|\bвідповідь\b|\bправильный вариант\b|\bαπάντηση\b|\bválasz\b",
    r"الإجابة|الجواب|उत्तर|התשובה",
    r"答案|正确(?:答案|选项)|正確(?:答案|選項)|答え|正解|回答|정답|답(?:은|변)",
    r"我认为是|应该是|应为|应当是",
)
_WHO = r"(?:i|we|i['’](?:d|ll|m)|i would|i will|let['’]s|let us|would|will|to|and)"
_ALONE = (
    r"(?=\s+(?:option\s+)?\(?(?-i:[A-Z])\)?\s*(?:[.,;!]|$))"  # a letter, then a pause
)
_CHOOSING = (
    rf"\b{_WHO}\s+(?:(?!not\b|never\b)\w+\s+)?(?:choose|chose|pick"
    r"|picked|select|selected|go with|going with|opt for|settle on|say|guess|answer"
    r"|conclude)\b",
    r"\b(?:choose|select|pick|chose|picked|selected)(?=\s+(?:option\s+)?\(?[A-Z]\b)",
    r"\b(?:suggests|indicates|points to|leads to|corresponds to|(?:which|that) leaves"
    r"(?: only)?|leaving(?: only)?)(?=\s+(?:option\s+)?\(?[A-Z0-9](?!\w*[a-z]))",
    rf"\b(?:(?:it|this)(?:['’]s| is)|(?:has to|must) be){_ALONE}",
    r"\b(?:elijo|escojo|escolho|je choisis|ich wähle|scelgo)\b",
    r"(?:故|应|應|因此|所以)?选择?(?=\s*[:：]?\s*[(（]?[A-Z])",
)
CUE = re.compile("(?i:" + "|".join((*_FINAL, *_NOUNS, *_CHOOSING)) + ")")
IS_FINAL = re.compile("(?i:" + "|".join(_FINAL) + ")")
DENIED = re.compile(r"(?i)\s*(?:(?:is|was)?\s*(?:not|n['’]t)\b|[.!?。！？])")
DENIED_BEFORE = re.compile(r"(?i)(?:\b(?:not|never)|n['’]t)\s+(?:\w+\s+)?$")

# What may stand between the announcement and the answer.
_LINKS = (
    r"is|was|are|be|would|should|must|will|most|likely|probably|clearly|definitely|here",
    r"therefore|thus|then|that|to|this|the|question|correct|right|best|final|one|seems",
    r"appears|option|choice|letter|answer|['’]s|-|–|—|:|：|,",
    r"es|la|el|le|é|è|(?-i:[ae](?=\s+\(?[A-Z](?!\w)))|est|ist|lautet|die|das|opción|opção",
    r"opzione|réponse|correcta|correta|correcte|corretta|richtige|là|đúng|adalah|yang",
    r"benar|to|jest|är|это|является|вариант|هي|الصحيحة|है",
    r"应该是?|应为|就是|是|为|為|選|选项?|は|은|는|이",
)
LINK = re.compile(
    r"(?i)[\s:：=>→\"'“”‘’「『]*(?:(?:" + "|".join(_LINKS) + r")"
    r"(?=[\s:：\"'“*(（\[]|(?-i:[A-Z](?![A-Za-z]))|$|[一-鿿])[\s:：\"'“”‘’]*){0,8}"
)
RIGHT = re.compile(
    r"(?i)\b(?:is|are|would be|must be|should be|seems|looks|appears|being)\s+"
    r"(?:to be\s+)?(?:clearly\s+|definitely\s+|therefore\s+|thus\s+|indeed\s+)?"
    r"(?:the\s+|my\s+)?(?:most\s+(?:likely|plausible)|(?:most\s+|only\s+|final\s+)?"
    r"(?:correct|right|best|better|accurate|appropriate|answer|true))\b"
    r"(?!\s+(?:than|of|side|hand|half|part|end|edge|now|angle|known"
    r"|seen|viewed))"
    r"|(?:是)?正确(?:的|答案|选项)|が正しい|が正解"
)
# A clause that lists what was looked at, before the one that decides.
LISTED = re.compile(
    r"(?i)^(?:(?:so|then),?\s+)?(?:after|having|considering|comparing|weighing|despite|of"
    r"|among(?:st)?|between|out of|given|unlike|compared)\b.*,\s*(?=[^,]*$)"
)

# -- correcting and concluding ---------------------------------------------------------

CORRECTS = re.compile(
    r"(?i)\b(?:wait|actually|correction|corrected|sorry|i mean|no,|hmm|however|but"
    r"|on reflection|on (?:a )?second (?:thou?ghts?|look)|instead|rather"
    r"|let me (?:re|correct|double)|mistake|revis\w+|reconsider\w*|finally"
    r"|in the end|more careful\w*|looking again|oops)\b|不对|等等|更正|重新|修正|但"
)
CORRECTION = re.compile(
    r"(?i)\b(?:no,? wait|wait,? no|wait,|scratch that|correction:?|sorry,|i mean"
    r"|on second thou?ghts?,?|let me correct (?:that|myself)[.:,]?|oops,?)"
    r"|(?:\.\.+|…|—)\s*(?i:no),?(?=\s+(?i:it['’]s\s+|it is\s+)?[(]?[A-Z]\b)"
    r"|不对|更正|不，"
)
SO = re.compile(
    r"(?i)\b(?:so|therefore|thus|hence|consequently|overall|in (?:conclusion|summary"
    r"|short)|to conclude|this means|which means|that means|accordingly|it must be)\b"
    r"|因此|所以|综上|故|よって|따라서|\bdonc\b|\bdaher\b"
    r"|\bpor (?:lo )?tanto\b"
)
UNSURE = re.compile(
    r"(?i)\b(?:could|might|may|maybe|perhaps|possibly|also|either|unsure|or|hard to)\b"
    r"|\?"
)
CONDITIONAL = re.compile(
    r"(?i)\bit depends\b|\bdepending on\b|\botherwise\b|\bwithout it\b|\bif not,"
    r"|\b(?:possible|plausible|likely|correct|right) (?:too|as well)\b|\bequally\b"
)
ASKED_AND_DENIED = re.compile(
    r"\(?\b[A-Z]\)?\?\s*(?:No|Nope|Not(?! sure))\b[^\n.!?]{0,40}[.!]?"
)
WRONG = re.compile(r"(?i)\b(?:is|are|was|were)\s+(?:wrong|incorrect|false)\b")
NO_DOUBT = re.compile(
    r"(?i),?\s?\b(?:there is |there['’]s |with )?no (?:doubt|question)\b"
)
ALL_BUT = re.compile(
    r"(?i)\b(?:everything|all(?: (?:the )?(?:others?|options|of them))?)\s+"
    r"(?:except|but)\s+(?:for\s+)?(?:option\s+)?\(?((?-i:[A-Z]))\b\)?[^.;\n]{1,40}?(?:\b(?:not|wrong"
    r"|incorrect|false|out|impossible|\w+ed)\b|n['’]t\b)[^.;\n]{0,40}"
)
# Words that single out one of many.
WHICH = re.compile(
    r"(?i)\b(?!(?:rest|west|test|forest|guest|chest|nest|vest|interest|request|latest)\b)"
    r"[a-z]{2,12}est\b|\b(?:most|best|maximum|minimum|only|mainly)\b"
)
