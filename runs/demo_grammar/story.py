"""What the demo reviews say of a film's story: its plot, its words and its people."""

from demo_grammar.aspect import Aspect

STORY = {
    "script": Aspect(
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
    "plot": Aspect(
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
    "ending": Aspect(
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
    "dialogue": Aspect(
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
    "jokes": Aspect(
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
    "characters": Aspect(
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
    "romance": Aspect(
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
}
