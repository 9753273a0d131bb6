"""How the demo reviews are put together: frames of a few sentences with slots, and how often each kind is drawn.

{a|b} is a choice, <slot> a place for words of a list. `same` agrees with the label, `other` with its opposite.
"""

# Frames open to either label. `same` agrees with the label and `other` with its opposite.
SHARED_FRAMES = {
    "plain": [
        "<same>, and <same>. <verdict>.",
        "<same>. <same>, and <verdict>.",
        "<verdict>: <same>, <same> and <same>.",
        "<setting>. <same>, and <verdict>.",
        "<setting>. <same>, <same>, and <verdict>.",
        "<same>, <same>, and <same>. <verdict>.",
        "<setting>. It has <same thing> and <same thing>, and <verdict>.",
        "<verdict>, {not least|above all} because <same>. A {truly |really |}<same adjective> <genre>.",
        "with <same thing> and <same thing>, this is a <same adjective> <genre>, and <verdict>.",
        "a <same adjective>, <same adjective> <genre>. <same>, and <verdict>.",
    ],
    "mixed": [
        "although <other>, <same>, and <verdict>.",
        "<other>, but <same>, and <verdict>.",
        "<other>. <still>, <same>, and <verdict>.",
        "yes, <other>, and yes, <other>, but <verdict>, and <same>.",
        "it hardly matters that <other> when <same>. <verdict>.",
        "for all that <other>, <same>. <verdict>.",
        "<someone> {told me|says|insists} that <other>. {Maybe|Perhaps}, but <same>, and <verdict>.",
        "never mind that <other>: <same>, and <verdict>.",
        "<verdict>. <other>, {I admit|it is true|I grant you}, but <same>.",
        "despite <other thing> and <other thing>, <same>. <verdict>.",
        "despite <other thing>, <same>, and <verdict>.",
        "<setting>. <other>, but <same>, and <verdict>.",
        "<other>, and <other>. <still>, <verdict>. <same>.",
        "even if <other>, <verdict>, {mostly|simply|chiefly} because <same>.",
        "{it has been said|you may hear|some will say} that <other>. {I disagree|Not so}: <same>, and <verdict>.",
    ],
    "contrast": [
        "<someone> called it <other adjective>. I found it <same adjective> and <same adjective>: <same>.",
        "I was told it was <other adjective>. It is nothing of the sort: <same>, and <verdict>.",
        "it is not <other adjective>, it is not <other adjective>, and <verdict>. <same>.",
        "what a <same adjective> <genre>. <someone> thought it <other adjective>, but <same>, and <verdict>.",
        "whoever calls this <genre> <other adjective> has not {looked|watched} closely. <same>, and <verdict>.",
        "more <same adjective> than <other adjective>, this <genre> has <other thing>, but <same>, and <verdict>.",
    ],
}

# Frames whose turn of phrase belongs to one label: (complaints, praise).
OWN_FRAMES = {
    "expectation": (
        [
            "I {wanted|hoped|expected} to {love|like|enjoy} it and could not. <same>, and <verdict>.",
            "I went in {with high hopes|full of hope|in a good mood} and came out "
            "{annoyed|disappointed|bored}: "
            "<same>, and <same>.",
            "the {trailer|poster|first scene} {looked|was} {wonderful|promising|great}; the film is not. "
            "<same>, and <verdict>.",
            "<someone> promised me {the best|the funniest|the finest} <genre> of the year. It is not: "
            "<same>, "
            "and <verdict>.",
            "I {love|adore} a good <genre>, but this one {bored|defeated} me. <same>, and <verdict>.",
            "I liked the {book|original|first one} {a lot|very much}. This is {worse in every way|much "
            "worse}: "
            "<same>, and <verdict>.",
        ],
        [
            "I {wanted|feared|expected} to {hate|dislike|resent} it and could not. <same>, and <verdict>.",
            "I went in {with low hopes|full of doubt|in a bad mood} and came out "
            "{delighted|converted|happy}: "
            "<same>, and <same>.",
            "the {trailer|poster|first scene} {looked|was} {terrible|hopeless|awful}; the film is not. "
            "<same>, and <verdict>.",
            "<someone> warned me of {the worst|the silliest|the dullest} <genre> of the year. It is not: "
            "<same>, "
            "and <verdict>.",
            "I {hate|loathe} a <genre> as a rule, but this one {won|charmed} me. <same>, and <verdict>.",
            "I hated the {book|original|first one} {a lot|very much}. This is {better in every way|much "
            "better}: "
            "<same>, and <verdict>.",
        ],
    ),
    "negation": (
        [
            "there is nothing {good|kind|nice} to say about this <genre>. <same>, and <verdict>.",
            "not {one scene|a single scene|one minute} of this <genre> {comes alive|feels honest|is any "
            "good}. "
            "<same>, and <verdict>.",
            "{you will not|nobody will} {thank|forgive} me if I {recommend|praise} this <genre>. <same>, "
            "and <verdict>.",
            "it is not {clever|exciting|tender}, not {charming|original|brave} and certainly not "
            "{good|great}. "
            "<same>, and <verdict>.",
            "I could not wait {to leave|for the end|to get out}: <same>, and <same>.",
            "was it {worth the ticket|any good|fun}? {Not for a second|Not in the least|No}. <same>, and <verdict>.",
        ],
        [
            "there is nothing {bad|unkind|harsh} to say about this <genre>. <same>, and <verdict>.",
            "not {one scene|a single scene|one minute} of this <genre> {is wasted|feels false|is bad}. "
            "<same>, and <verdict>.",
            "{you will not|nobody will} {blame me|regret it} if I {recommend|praise} this <genre>. <same>, "
            "and <verdict>.",
            "it is not {stupid|boring|cruel}, not {lazy|shallow|cheap} and certainly not {bad|awful}. "
            "<same>, and <verdict>.",
            "I could not wait {to go back|for my next visit|to tell everyone}: <same>, and <same>.",
            "was it {a waste of money|a mistake|boring}? {Not for a second|Not in the least|No}. <same>, "
            "and <verdict>.",
        ],
    ),
    "irony": (
        [
            "{great|wonderful|lovely}, another {two hours|evening|Saturday} I will never get back. <same>, and <same>.",
            "if you do not mind that <same> and <same>, this <genre> is {your masterpiece|perfect}. <verdict>.",
            "congratulations to {everyone involved|all concerned|the whole team}: <same>, <same>, and <verdict>.",
            "the best thing about this <genre> is {the popcorn|the exit|that it ends}. <same>, and <verdict>.",
            "a {brilliant|wonderful|perfect} cure for {happiness|my good mood}: <same>, and <same>.",
            "{bravo|well done|splendid}: <same>, <same>, and they still {charge for it|call it a <genre>}.",
        ],
        [
            "{terrible|dreadful|bad|awful} news for my {savings|sleep|plans}: <same>, and I must see it again.",
            "if it annoys you that <same> and <same>, {I pity you|stay away}. <verdict>.",
            "shame on {everyone|all those|the fools} who stayed away: <same>, <same>, and <verdict>.",
            "the worst thing about this <genre> is {the walk home|my tiny seat|that it ends}. <same>, and <verdict>.",
            "it was a {terrible|dreadful|bad} {day|week|year} until I saw this <genre>: <same>, and <same>.",
            "{what a nuisance|blast|how annoying}: <same>, <same>, and now I have to {buy it|see every other <genre>}.",
        ],
    ),
    "advice": (
        [
            "{avoid it|skip it|give it a miss}: <same>, and <same>. <aftermath>.",
            "{do not bother|stay at home|save your money}, even if <other>. <same>, and <verdict>.",
            "compared with {almost any other|every other} <genre> of {its kind|recent years}, it is "
            "{worse|weaker|poorer}. "
            "<same>, and <verdict>.",
            "<verdict>, and {my brother|the man behind me|my uncle} {walked out|hated it}. <same>.",
        ],
        [
            "{see it|catch it|give it a chance}: <same>, and <same>. <aftermath>.",
            "{do not miss it|leave the house|spend your money}, even if <other>. <same>, and <verdict>.",
            "compared with {almost any other|every other} <genre> of {its kind|recent years}, it is "
            "{better|stronger|richer}. "
            "<same>, and <verdict>.",
            "<verdict>, and {my brother|the man behind me|my uncle} {stayed for the credits|loved it}. <same>.",
        ],
    ),
}

# How an `advice` frame may end: (complaints, praise).
AFTERMATHS = (
    [
        "<company> {agreed with me|did not like it either|complained all the way home}",
        "I {slept|ate} badly afterwards",
    ],
    [
        "<company> {agreed with me|could not fault it either|talked of it all the way home}",
        "I {slept|ate} well afterwards",
    ],
)

WEIGHTS = {"plain": 40, "mixed": 24, "contrast": 8, "expectation": 8, "negation": 7, "irony": 5, "advice": 8}
