"""What the demo reviews say of a film's making: how it is played, shot, cut and scored."""

from demo_grammar.aspect import Aspect

CRAFT = {
    "acting": Aspect(
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
    "camera": Aspect(
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
    "music": Aspect(
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
    "direction": Aspect(
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
    "pacing": Aspect(
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
    "effects": Aspect(
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
    "sets": Aspect(
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
    "editing": Aspect(
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
}
