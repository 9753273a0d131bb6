"""Word lists of the demo reviews: verdicts, adjectives, and what means the same under both labels.

{a|b} is a choice, <slot> a place for words of a list.
"""

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
