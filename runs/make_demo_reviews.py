"""Write the demo data: short film reviews from a grammar, 400 to train on and 600 held out.

Every phrase below was written for this file; nothing is copied from a corpus or a film. A review is a frame
(concession, contrast, sarcasm, ...) whose slots are filled from word lists. Most frames serve praise and
complaint alike, and words of either kind occur under both labels, so no single word gives the label away: the
script checks that on the held-out file, and that no sentence occurs twice. It makes a demonstration, not a
benchmark: a good accuracy here says nothing about real reviews.

    python runs/make_demo_reviews.py
"""

import argparse
import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

SEED = 20
NUM_TRAIN = 400
NUM_EVAL = 600
WORD_LIMITS = (12, 45)
MAX_SINGLE_WORD_ACCURACY = 0.65
DEMO_FOLDER = Path(__file__).parents[1] / "src" / "zotune" / "demo"


@dataclass(frozen=True)
class Aspect:
    """One thing a review can judge. Index 0 holds complaints, index 1 praise; {a|b} is a choice."""

    clauses: tuple[list[str], list[str]]
    """Independent clauses, fit to follow `although` or `but`."""

    things: tuple[list[str], list[str]]
    """Noun phrases, fit to follow `despite`."""


ASPECTS = [
    Aspect(  # acting
        clauses=(
            [
                "the {acting|lead performance} is {wooden|terrible|awful|amateurish|painfully bad}",
                "{the whole cast|every actor, down to the smallest part,} {looks|seems} "
                "{bored|lost|half asleep|badly miscast}",
                "the {young lead|actress in the main part|man who plays the father} "
                "{is awful|gives a lifeless performance|ruins every scene|is annoying}",
                "not one {actor|person in the cast} {makes any effort|gets a line right|can act}",
            ],
            [
                "the {acting|lead performance} is {superb|excellent|wonderful|first-rate|quietly brilliant}",
                "{the whole cast|every actor, down to the smallest part,} {looks|is} "
                "{at ease|completely convincing|wide awake|perfectly cast}",
                "the {young lead|actress in the main part|man who plays the father} "
                "{is superb|gives a beautiful performance|lights up every scene|is amazing}",
                "not one {actor|person in the cast} {puts a foot wrong|overplays a line|is bad}",
            ],
        ),
        things=(
            ["{some|a lot of} {wooden|bad|terrible} acting", "a {bored|badly chosen|half-asleep} cast"],
            ["{some|a lot of} {fine|great|heartfelt} acting", "a {splendid|well chosen|wonderful} cast"],
        ),
    ),
    Aspect(  # script
        clauses=(
            [
                "the {script|screenplay|writing} {is lazy|is awful|is stupid|is a complete mess|is full of holes}",
                "the writer {insults us|wastes a good idea|has nothing {true|fresh} to say about "
                "{grief|marriage|growing up|money|old age}}",
            ],
            [
                "the {script|screenplay|writing} {is sharp|is excellent|is clever|is a complete joy|is full of wit}",
                "the writer {trusts us|loves a good idea|has something {true|fresh} to say about "
                "{grief|marriage|growing up|money|old age}}",
            ],
        ),
        things=(
            ["a {lazy|terrible|muddled} script", "{careless|bad} writing"],
            ["a {clever|brilliant|literate} script", "{careful|great} writing"],
        ),
    ),
    Aspect(  # plot
        clauses=(
            [
                "the {plot|story} {makes no sense|falls apart {at once|after half an hour|in the first act}|"
                "is {ridiculous|stupid|predictable|pointless}|is {simple|thin} and badly told}",
                "I {guessed|could guess} {every turn|where it was all heading} far too early",
                "I {could not follow|did not believe|gave up on} {most of the story|the silly story}",
            ],
            [
                "the {plot|story} {makes perfect sense|holds together {at once|for two hours|to the last "
                "minute}|"
                "is {intriguing|gripping|surprising|powerful}|is {simple|slight} and beautifully told}",
                "I {never guessed|could not guess} {the next turn|where it was all heading}",
                "I {could not resist|believed|fell for} {all of the story|the moving story}",
            ],
        ),
        things=(
            ["a {silly|stupid|confusing} {plot|story}", "{big|a few} holes in the plot"],
            ["a {clever|gripping|beautiful} {plot|story}", "{big|a few} surprises in the plot"],
        ),
    ),
    Aspect(  # camera
        clauses=(
            [
                "the {camerawork|photography|lighting} is {ugly|awful|poor|muddy|murky and careless}",
                "every {shot|frame} {looks cheap|is too dark|looks like a bad advertisement|seems out of focus}",
                "the camera {shakes until you feel sick|never stops wobbling|is always in the wrong place|"
                "finds nothing to look at but {a wet street|a kitchen sink|an empty car park}}",
            ],
            [
                "the {camerawork|photography|lighting} is {gorgeous|superb|stunning|crisp|rich and careful}",
                "every {shot|frame} {looks beautiful|is a delight|looks like a great painting|seems to glow}",
                "the camera {moves with real grace|never misses a glance|is always in the right place|"
                "finds beauty in {a wet street|a kitchen sink|an empty car park}}",
            ],
        ),
        things=(
            ["{ugly|poor|shaky} {photography|camerawork}"],
            ["{lovely|stunning|elegant} {photography|camerawork}"],
        ),
    ),
    Aspect(  # music
        clauses=(
            [
                "the {music|score} {is awful|is deafening|drowns every scene|never knows when to stop|"
                "{ruins|spoils} the quiet scenes}",
                "the {songs|main tunes} {are terrible|are annoying|all sound the same}",
            ],
            [
                "the {music|score} {is lovely|is wonderful|lifts every scene|always knows when to stop|"
                "{enriches|makes} the quiet scenes}",
                "the {songs|main tunes} {are great|are beautiful|set my feet tapping}",
            ],
        ),
        things=(
            ["{loud|syrupy|terrible} music", "a {dreary|noisy} score"],
            ["{delicate|stirring|wonderful} music", "a {lovely|haunting} score"],
        ),
    ),
    Aspect(  # ending
        clauses=(
            [
                "the {ending|final scene|last act} {is stupid|is awful|is a cheat|is a mess|made me groan|"
                "is not worth the wait}",
            ],
            [
                "the {ending|final scene|last act} {is perfect|is beautiful|is a triumph|is a wonder|moved "
                "me to tears|"
                "is well worth the wait}",
            ],
        ),
        things=(
            ["{a silly|an abrupt|a false|a terrible} ending"],
            ["{a clever|an honest|a tender|a great} ending"],
        ),
    ),
    Aspect(  # direction
        clauses=(
            [
                "the director {has a heavy hand|does not trust the audience|makes a mess of it|"
                "has no idea what to leave out|cannot {tell a story|build a scene}}",
                "the direction is {terrible|clumsy|flat and lifeless|without any imagination|poor throughout}",
            ],
            [
                "the director {has a light touch|trusts the audience|makes something rare of it|"
                "knows exactly what to leave out|can {really|certainly} {tell a story|build a scene}}",
                "the direction is {brilliant|assured|calm and precise|full of imagination|superb throughout}",
            ],
        ),
        things=(
            ["{clumsy|flat|poor|heavy-handed} direction"],
            ["{assured|graceful|excellent|light-handed} direction"],
        ),
    ),
    Aspect(  # dialogue
        clauses=(
            [
                "the dialogue {is {terrible|laughable|stilted|badly written}|is a pain to listen to}",
                "there is not a {true|memorable|good} line in {it|the whole film}",
                "{half|most} of the lines {are ridiculous|are awful|made me wince}",
            ],
            [
                "the dialogue {is {wonderful|witty|natural|beautifully written}|is a joy to listen to}",
                "there is not a {false|wasted|bad} line in {it|the whole film}",
                "{half|most} of the lines {are brilliant|are worth quoting|made me smile}",
            ],
        ),
        things=(
            ["{stilted|bad|terrible} dialogue"],
            ["{witty|natural|wonderful} dialogue"],
        ),
    ),
    Aspect(  # pacing
        clauses=(
            [
                "the {pace|pacing} is {terrible|boring|sluggish|all wrong}",
                "the {two hours|ninety minutes} {are dull|drag badly|are a waste|feel like a week}",
                "{I kept looking at my watch|the middle hour is dull|I nearly fell asleep twice}",
                "there is hardly a {lively|good|bright} {moment|minute|scene} in {it|the whole film}",
                "it wastes {the best part of an hour|most of its boring first half}",
            ],
            [
                "the {pace|pacing} is {excellent|exciting|brisk|just right}",
                "the {two hours|ninety minutes} {are thrilling|fly by|are a treat|feel like a few minutes}",
                "{I never once looked at my watch|the middle hour is exciting|I forgot what time it was}",
                "there is hardly a {dull|bad|slow} {moment|minute|scene} in {it|the whole film}",
                "it wastes {hardly a second of our time|not a minute of its thrilling first half}",
            ],
        ),
        things=(
            ["a {boring|slow|dull} {first|second} half"],
            ["a {lively|great|thrilling} {first|second} half"],
        ),
    ),
    Aspect(  # jokes
        clauses=(
            [
                "the {jokes|gags|comic scenes} {fall flat|are not funny|are {lame|stupid|stale|awful}|"
                "are about as funny as {a toothache|a tax form|a parking ticket}}",
                "{the whole row|everyone around me|my entire family} {yawned|groaned|was bored}",
                "{I did not laugh once|not once did I laugh|I did not even smile}",
            ],
            [
                "the {jokes|gags|comic scenes} {hit home|are very funny|are "
                "{hilarious|fresh|clever|delightful}|"
                "could make you forget {a toothache|a tax form|a parking ticket}}",
                "{the whole row|everyone around me|my entire family} {was in stitches|laughed|was enchanted}",
                "{I laughed more than once|I could not stop laughing|I did not stop smiling}",
            ],
        ),
        things=(
            ["{stale|lame|stupid} jokes", "{forced|clumsy} comedy"],
            ["{fresh|hilarious|good} jokes", "{light|effortless} comedy"],
        ),
    ),
    Aspect(  # effects
        clauses=(
            [
                "the effects are {laughable|cheap|terrible|smeared over everything}",
                "the {stunts|action scenes|fights} are {dull|ridiculous|badly staged|not in the least exciting}",
            ],
            [
                "the effects are {dazzling|amazing|superb|used with care}",
                "the {stunts|action scenes|fights} are {thrilling|fantastic|well staged|not in the least fake}",
            ],
        ),
        things=(
            ["{cheap|shoddy|poor} effects", "{dull|clumsy} action"],
            ["{dazzling|clever|amazing} effects", "{exciting|nimble} action"],
        ),
    ),
    Aspect(  # characters
        clauses=(
            [
                "the {characters|people in it} {feel like cardboard|are {annoying|stupid|shallow|unlikeable}|"
                "are impossible to care about}",
                "I {did not care|soon stopped caring} {who lived or died|what became of any of them}",
            ],
            [
                "the {characters|people in it} {feel like old friends|are "
                "{lovable|fascinating|rich|memorable}|"
                "are easy to care about}",
                "I {cared deeply|soon began to care} {who lived or died|what became of all of them}",
            ],
        ),
        things=(
            ["{annoying|stupid|shallow} characters"],
            ["{lovable|rounded|believable} characters"],
        ),
    ),
    Aspect(  # romance
        clauses=(
            [
                "the {two leads|central couple} {have no chemistry|are a bore together|look embarrassed}",
                "the {romance|love story} {is forced|is ridiculous|is hard to believe|goes nowhere}",
            ],
            [
                "the {two leads|central couple} {have real chemistry|are a delight together|look radiant}",
                "the {romance|love story} {is tender|is beautiful|is easy to believe|goes straight to the heart}",
            ],
        ),
        things=(
            ["a {forced|ridiculous|tiresome} romance"],
            ["a {tender|touching|convincing} romance"],
        ),
    ),
    Aspect(  # sets
        clauses=(
            [
                "the {sets|costumes|locations} are {cheap|an eyesore|unconvincing|awful}",
                "{the town|the house} {never|hardly ever} {looks like a real place|comes to life}",
            ],
            [
                "the {sets|costumes|locations} are {beautiful|a treat|convincing|gorgeous}",
                "{the town|the house} {really|always} {looks like a real place|comes to life}",
            ],
        ),
        things=(
            ["{shabby|ugly|cheap} {sets|costumes}"],
            ["{rich|beautiful|elegant} {sets|costumes}"],
        ),
    ),
    Aspect(  # editing
        clauses=(
            [
                "the {editing|cutting} is {terrible|a mess|frantic|careless}",
                "no scene {leads to|connects with|makes you want} the next",
            ],
            [
                "the {editing|cutting} is {excellent|a marvel|patient|careful}",
                "each scene {leads to|deepens|makes you want} the next",
            ],
        ),
        things=(
            ["{choppy|terrible|careless} editing"],
            ["{crisp|excellent|careful} editing"],
        ),
    ),
]

# What the review thinks of the film as a whole, as a clause: (complaints, praise).
VERDICTS = (
    [
        "I would {not|never} {see|sit through|watch} it again{| for any money| even for free| as long as I live}",
        "{the whole thing|all of it} is {a chore|awful|terrible|a waste of {time|money|an evening}}",
        "I was {annoyed|bored|irritated|unhappy} from {start to finish|the first scene on|beginning to end}",
        "I {disliked|hated|resented} {every minute of it|nearly all of it|the whole of it}",
        "it {is a bad film|is one of the worst {films|pictures} {of the year|I have seen}}",
        "it {bored me|bored my whole family|bored the whole room} {completely|in the end|to tears}",
        "it is a <same adjective> {film|picture|story}",
        "it is a <same adjective> and <same adjective> {film|picture|story}",
        "I {did not like|could not enjoy|did not love} it{| one bit| at all| in the slightest}",
        "I {wish I had stayed at home|want my {money|evening|ticket money} back}",
        "I {cannot|will not} {recommend|defend|praise} it{| to anyone| to a friend| with a clear conscience}",
        "{it is a|it was a|I call it a} {complete|total|sad} {waste of time|failure|mess|disappointment}",
    ],
    [
        "I would {gladly|happily} {see|sit through|watch} it again{| any day| this evening| at full price}",
        "{the whole thing|all of it} is {a joy|excellent|wonderful|worth the {time|money|evening}}",
        "I was {delighted|moved|enchanted|happy} from {start to finish|the first scene on|beginning to end}",
        "I {enjoyed|loved|treasured} {every minute of it|nearly all of it|the whole of it}",
        "it {is a great film|is one of the best {films|pictures} {of the year|I have seen}}",
        "it {moved me|moved my whole family|moved the whole room} {completely|in the end|to tears}",
        "it is a <same adjective> {film|picture|story}",
        "it is a <same adjective> and <same adjective> {film|picture|story}",
        "{I could not help {liking|enjoying|loving} it|I found {nothing|very little} to dislike{| in it| about it}}",
        "I {am glad I did not stay at home|would pay {for it twice|the ticket price twice|double the price}}",
        "{I {cannot|could not} fault it{| even now| in any way| on any count}|I {cannot|could not} resist it}",
        "{it is a|it was a|I call it a} {complete|total|rare} {delight|success|treat|triumph}",
    ],
)

ADJECTIVES = (
    [
        *(
            "boring",
            "dreary",
            "lazy",
            "pointless",
            "stupid",
            "forgettable",
            "awful",
            "silly",
            "terrible",
            "dull",
        ),
        *("tedious", "lame", "horrible", "shallow", "unwatchable", "ridiculous", "dreadful", "poor"),
    ],
    [
        *(
            "touching",
            "smart",
            "charming",
            "moving",
            "delightful",
            "inventive",
            "wonderful",
            "superb",
            "great",
        ),
        *(
            "warm",
            "thoughtful",
            "excellent",
            "beautiful",
            "powerful",
            "unforgettable",
            "brilliant",
            "lovely",
            "fine",
        ),
    ],
)

# Slots that mean the same under both labels.
NEUTRAL = {
    "genre": [
        *(
            "thriller",
            "comedy",
            "western",
            "war film",
            "ghost story",
            "family drama",
            "heist film",
            "road movie",
        ),
        *("costume drama", "murder mystery", "courtroom drama", "spy film", "sports film"),
    ],
    "premise": [
        "two sisters who inherit a {failing|haunted} hotel",
        "a retired detective and his {first|last} case",
        "a village whose river {dries up|turns red}",
        "a porter who hears a {murder|quarrel} through the wall",
        "a {travelling circus|touring band} in its final season",
        "a bank clerk who steals by {accident|post}",
        "a lighthouse keeper and his {runaway|missing} daughter",
        "{three|five} strangers stuck in a lift",
        "a {baker|teacher|surgeon} who takes up boxing",
        "an old {spy|pilot} who cannot stop telling lies",
    ],
    "company": [
        *("my sister", "my father", "two friends", "my neighbour", "the children", "a colleague", "my wife"),
        *("my husband", "my grandmother"),
    ],
    "occasion": [
        *(
            "on a wet Sunday",
            "on a long flight",
            "at a festival",
            "last night",
            "at the weekend",
            "on a whim",
        ),
        *("on television", "in a nearly empty cinema", "in a packed cinema", "over the holidays"),
    ],
    "still": ["even so", "all the same", "still", "nevertheless", "in spite of that", "however"],
    "someone": [
        *(
            "my sister",
            "the man next to me",
            "a friend",
            "the critic in our paper",
            "my neighbour",
            "a colleague",
        ),
    ],
    "setting": [
        "I {saw|watched} this <genre> with <company> <occasion>",
        "this is a <genre> about <premise>",
        "<company> and I {saw|watched} this one <occasion>",
        "a <genre> about <premise>",
        "I {saw|watched} it <occasion>, knowing {nothing|next to nothing|very little} about it",
    ],
}

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


def choose_inline(text: str, rng: random.Random) -> str:
    """Resolve every {a|b|c}, innermost first."""
    while "{" in text:
        text = re.sub(r"\{([^{}]*)\}", lambda match: rng.choice(match.group(1).split("|")), text)
    return text


def fill(frame: str, label: int, rng: random.Random) -> str:
    """Fill a frame's slots. Nothing is used twice, aspects included, so no review contradicts itself."""
    sides = {"same": label, "other": 1 - label}
    aspects = list(ASPECTS)
    rng.shuffle(aspects)
    genre = rng.choice(NEUTRAL["genre"])
    used: set[str] = set()

    def pick(options: list[str]) -> str:
        choice = rng.choice([option for option in options if option not in used])
        used.add(choice)
        return choice

    def fill_slot(match: re.Match[str]) -> str:
        slot, _, kind = match.group(1).partition(" ")
        if slot == "genre":
            return genre
        if slot == "verdict":
            return pick(VERDICTS[label])
        if slot == "aftermath":
            return pick(AFTERMATHS[label])
        if slot not in sides:
            return pick(NEUTRAL[slot])
        if kind == "adjective":
            return pick(ADJECTIVES[sides[slot]])
        aspect = aspects.pop()
        return rng.choice((aspect.things if kind == "thing" else aspect.clauses)[sides[slot]])

    text = frame
    while "<" in text:
        text = re.sub(r"<([^<>]*)>", fill_slot, text)
    return choose_inline(text, rng)


def polish(text: str) -> str:
    """Capital letters after full stops, and `an` before a vowel."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return re.sub(r"(?:^|(?<=[.?!] ))[a-z]", lambda match: match.group().upper(), text)


def split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.?!]) ", text)


def draw_reviews(label: int, count: int, rng: random.Random, seen: set[str]) -> list[str]:
    """`count` reviews none of whose sentences is in `seen`, which grows."""
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    reviews: list[str] = []
    while len(reviews) < count:
        kind = rng.choices(kinds, weights)[0]
        frames = SHARED_FRAMES[kind] if kind in SHARED_FRAMES else OWN_FRAMES[kind][label]
        text = polish(fill(rng.choice(frames), label, rng))
        sentences = split_sentences(text)
        if not WORD_LIMITS[0] <= len(text.split()) <= WORD_LIMITS[1] or not seen.isdisjoint(sentences):
            continue
        seen.update(sentences)
        reviews.append(text)
    return reviews


def make_splits() -> tuple[list[dict], list[dict]]:
    """Balanced train and held-out rows, drawn together so that both have the same mix."""
    rng = random.Random(SEED)
    seen: set[str] = set()
    train: list[dict] = []
    held_out: list[dict] = []
    for label in (0, 1):
        texts = draw_reviews(label, (NUM_TRAIN + NUM_EVAL) // 2, rng, seen)
        rng.shuffle(texts)
        rows = [{"text": text, "label": label} for text in texts]
        train += rows[: NUM_TRAIN // 2]
        held_out += rows[NUM_TRAIN // 2 :]
    rng.shuffle(train)
    rng.shuffle(held_out)
    return train, held_out


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z']+", text.lower()))


def best_single_word(rows: list[dict]) -> tuple[str, float]:
    """The word whose presence, or absence, best predicts the label of `rows`, with its accuracy on them."""
    counts = (Counter[str](), Counter[str]())
    for row in rows:
        counts[row["label"]].update(words_of(row["text"]))
    gaps = {word: abs(counts[1][word] - counts[0][word]) for word in counts[0] | counts[1]}
    word = max(sorted(gaps), key=gaps.__getitem__)
    # On balanced rows, predicting one label where the word occurs gains half of its count gap over chance.
    return word, 0.5 + gaps[word] / len(rows)


def check(train: list[dict], held_out: list[dict]) -> None:
    """Print what the files hold, and stop if one of the promises of this file's first paragraph is broken."""
    for name, rows in (("train", train), ("eval", held_out)):
        lengths = [len(row["text"].split()) for row in rows]
        positives = sum(row["label"] for row in rows)
        print(f"{name}: {len(rows)} rows, {positives} positive, {min(lengths)}-{max(lengths)} words")
        if 2 * positives != len(rows):
            raise ValueError(f"{name} is not balanced: {positives} of {len(rows)} rows are positive")
    sentences = Counter(sentence for row in train + held_out for sentence in split_sentences(row["text"]))
    print(f"sentences: {sum(sentences.values())}, of which {len(sentences)} different")
    if max(sentences.values()) > 1:
        raise ValueError(f"a sentence occurs twice: {sentences.most_common(1)[0][0]!r}")
    word, accuracy = best_single_word(held_out)
    print(f"best single word on eval: {word!r}, accuracy {accuracy:.1%}, allowed {MAX_SINGLE_WORD_ACCURACY:.0%}")
    if accuracy > MAX_SINGLE_WORD_ACCURACY:
        raise ValueError(f"the word {word!r} alone predicts {accuracy:.1%} of the eval labels")


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=DEMO_FOLDER)
    output_dir: Path = parser.parse_args().output_dir
    train, held_out = make_splits()
    check(train, held_out)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_rows(output_dir / "train.jsonl", train)
    write_rows(output_dir / "eval.jsonl", held_out)


if __name__ == "__main__":
    main()
