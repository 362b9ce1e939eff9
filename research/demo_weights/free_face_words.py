"""The words of free sentences for the face itself and what is behind it; see `free_words.py`."""

from __future__ import annotations

from research.demo_weights.free_words import FreeWords, by_part, by_value, split

GLASSES: FreeWords = {
    "none": by_part(
        having="no glasses|no specs|no spectacles|no eyewear|no eyeglasses|no glasses on"
        "|neither glasses nor shades|no glasses or sunglasses|no shades",
        doing="without glasses|not wearing glasses|without spectacles|without specs"
        "|wearing no glasses|without eyewear|not wearing any glasses|minus the glasses"
        "|glasses off",
        clause="{s} {is} not wearing glasses|{s} {is} without glasses|there are no glasses"
        "|no glasses sit on {P} nose|{s} {has} no glasses",
    ),
    "round": by_part(
        before="bespectacled|glasses-wearing|spectacled|four-eyed",
        having="round glasses|glasses|round spectacles|eyeglasses|round-rimmed glasses|spectacles"
        "|specs|wire-rimmed glasses|reading glasses|circular glasses|round frames"
        "|a pair of glasses|big round glasses|round specs|glasses on the nose|round lenses"
        "|owlish glasses|a pair of round spectacles|clear glasses|round eyeglasses"
        "|John Lennon glasses|old-fashioned spectacles|glasses with round frames|nerdy glasses",
        wearing="round glasses|glasses|spectacles|specs|eyeglasses|a pair of round glasses"
        "|round-rimmed spectacles|reading glasses|circular spectacles|round specs|clear glasses",
        clause="{P} glasses are round|{s} {has} round glasses on"
        "|a pair of spectacles sits on {P} nose|{s} {is} wearing glasses"
        "|{P} eyes look through round glasses|{s} peers through spectacles"
        "|round glasses rest on {P} nose|the glasses are round",
    ),
    "sunglasses": by_part(
        before="sunglassed|shades-wearing",
        having="sunglasses|dark sunglasses|shades|dark shades|dark glasses|sunnies|tinted glasses"
        "|black sunglasses|cool shades|a pair of shades|aviators|ray-bans|wayfarers|sun glasses"
        "|mirrored sunglasses|black shades|dark lenses|a pair of sunglasses|tinted shades"
        "|sunglasses on|black glasses that hide the eyes|opaque dark glasses",
        wearing="sunglasses|dark sunglasses|shades|dark glasses|sunnies|black shades"
        "|tinted glasses|a pair of sunglasses|cool sunglasses|aviators|black sunglasses|ray-bans"
        "|a pair of dark shades",
        doing="hidden behind shades|eyes hidden behind sunglasses|behind dark glasses"
        "|looking cool in shades",
        clause="{P} eyes are hidden behind sunglasses|{s} {has} shades on|{P} sunglasses are dark"
        "|dark glasses cover {P} eyes|{s} {is} wearing sunglasses|sunglasses hide {P} eyes"
        "|you cannot see {P} eyes behind the shades|shades cover {P} eyes",
    ),
}  # fmt: skip
FACIAL_HAIR: FreeWords = {
    "none": by_part(
        before="clean-shaven|beardless|smooth-shaven|smooth-faced|shaven",
        having="no beard|a clean-shaven face|no facial hair|no whiskers|a smooth chin|no moustache"
        "|neither beard nor moustache|a hairless chin|no stubble|no beard or moustache"
        "|a bare chin|a shaven face|no mustache|smooth cheeks",
        doing="clean-shaven|freshly shaven|without a beard|beardless|clean shaven|well shaved"
        "|without facial hair|without a moustache|not bearded|shaved",
        clause="{s} {is} clean-shaven|{P} chin is smooth|{s} {has} no beard|{P} face is shaven"
        "|there is no facial hair|{s} {is} not bearded|{P} chin is bare|{s} {has} just shaved"
        "|{s} shaved this morning|{s} {has} neither beard nor moustache|{s} {has} no whiskers",
    ),
    "moustache": by_part(
        before="moustached|mustachioed|moustachioed",
        having="a {c} moustache|a {c} mustache|a bushy {c} moustache|a {c} 'stache|a {c} tache"
        "|a thick {c} moustache|a {c} handlebar moustache|a walrus moustache|a big {c} mustache"
        "|{c} hair on the upper lip|a {c} moustache but no beard|a large {c} moustache"
        "|a {c} stache under the nose|{c} whiskers above the lip|a {c} moustache only"
        "|a bushy {c} mustache|an impressive {c} moustache|only a {c} moustache",
        clause="{P} moustache is {b}|a {c} moustache covers {P} lip"
        "|{s} {has} grown a {c} moustache|a {c} moustache grows under {P} nose"
        "|{P} {c} mustache is thick|{P} upper lip is hairy|{P} {c} moustache is bushy"
        "|{s} {has} a moustache but no beard|whiskers grow on {P} upper lip",
    ),
    "beard": by_part(
        before="bearded|whiskered|unshaven|full-bearded|bushy-bearded|{c}-bearded",
        having="a {c} beard|a full {c} beard|a thick {c} beard|a bushy {c} beard|{c} whiskers"
        "|a {c} facial beard|a big {c} beard|a {c} full beard|a {c} beard and moustache"
        "|a hairy chin|an unshaven face|a {c} lumberjack beard|a heavy {c} beard|a {c} chin beard"
        "|a {c} beard on the chin|{c} hair on the chin|a dense {c} beard|a {c} hipster beard"
        "|a bearded face|a well-grown {c} beard|a trimmed {c} beard|stubble"
        "|{c} whiskers on the chin|a long {c} beard|a short {c} beard|a goatee",
        doing="bearded|unshaven|fully bearded|who has not shaved",
        clause="{P} beard is {b}|a {c} beard covers {P} chin|{s} {has} grown a {c} beard"
        "|{s} {is} bearded|{P} chin is covered in a {c} beard|{P} {c} beard is thick"
        "|{P} cheeks are covered by a {c} beard|{P} {c} beard is full|{s} {has} not shaved"
        "|whiskers cover {P} chin",
    ),
}  # fmt: skip
SKIN: FreeWords = {
    "pale": by_part(
        before="pale|fair-skinned|pale-skinned|light-skinned|white-skinned|pale-faced|pallid",
        having="pale skin|fair skin|light skin|white skin|porcelain skin|a pale complexion"
        "|a fair complexion|ivory skin|a pale face|milky skin|very light skin|a light complexion"
        "|pallid skin|pasty skin|light-coloured skin|pale cheeks|untanned skin|peachy skin"
        "|a light skin tone|a pale skin tone",
        clause="{P} skin is pale|{P} skin is fair|{P} complexion is light|{P} face is pale"
        "|{s} {has} very light skin|{P} skin is light|{P} skin tone is pale|{P} skin is white",
    ),
    "tan": by_part(
        before="tanned|olive-skinned|tan-skinned|suntanned|sun-kissed|bronzed|sunburnt",
        having="tan skin|olive skin|tanned skin|a tan|a suntan|bronzed skin|sun-kissed skin"
        "|an olive complexion|a tanned face|suntanned skin|golden skin|bronze skin|honey skin"
        "|light brown skin|a tan complexion|a golden tan|sun-browned skin|a tan skin tone",
        clause="{P} skin is tanned|{P} skin is olive|{s} {has} a tan|{P} face is tanned"
        "|{P} complexion is olive|the sun has tanned {P} skin|{P} skin is tan|{P} skin is bronzed",
    ),
    "brown": by_part(
        before="brown-skinned|caramel-skinned|brown-faced|medium-skinned",
        having="brown skin|medium brown skin|caramel skin|cinnamon skin|a brown complexion"
        "|mid-brown skin|toffee-coloured skin|warm brown skin|nut-brown skin"
        "|caramel-coloured skin|a brown face|a brown skin tone|medium-brown skin"
        "|copper-brown skin|cinnamon-coloured skin",
        clause="{P} skin is brown|{P} complexion is brown|{P} skin is medium brown"
        "|{P} face is brown|{P} skin is a warm brown|{P} skin tone is brown|{P} skin is caramel",
    ),
    "dark": by_part(
        before="dark-skinned|black|dark-complexioned|ebony-skinned|dark-faced",
        having="dark skin|deep brown skin|very dark skin|black skin|ebony skin|a dark complexion"
        "|deep dark skin|dark brown skin|chocolate skin|mahogany skin|espresso-coloured skin"
        "|a dark face|a dark skin tone|a deep complexion|very brown, dark skin",
        clause="{P} skin is dark|{P} complexion is dark|{P} skin is very dark|{P} face is dark"
        "|{P} skin is deep brown|{P} skin tone is dark|{P} skin is black|{P} skin is dark brown",
    ),
}  # fmt: skip
EYES: FreeWords = {
    "open": by_part(
        having="open eyes|small round eyes|plain eyes|ordinary eyes|normal eyes|dot eyes"
        "|simple eyes|button eyes|beady eyes|both eyes open|small eyes|regular eyes|neutral eyes"
        "|dots for eyes|little round eyes|small dark eyes|small open eyes|eyes like dots",
        clause="{P} eyes are open|{P} eyes are small and round|{P} eyes are two dots"
        "|both {P} eyes are open|{P} eyes look ordinary|{P} eyes are plain|{P} eyes are normal",
    ),
    "closed": by_part(
        before="sleeping|sleepy|dozing",
        having="closed eyes|eyes shut|both eyes closed|shut eyes|eyes closed|lowered eyelids"
        "|sleeping eyes|eyes tightly shut|both eyes shut|closed eyelids|peacefully closed eyes"
        "|lids closed|eyes that are closed|sleepy closed eyes|eyes firmly closed",
        doing="eyes closed|asleep|dozing|sleeping|eyes shut|keeping both eyes shut"
        "|with eyes closed|fast asleep|closing the eyes|who sleeps|napping"
        "|who has closed {p} eyes|dreaming with closed eyes",
        clause="{P} eyes are closed|{P} eyes are shut|{s} {has} closed {P} eyes"
        "|both {P} eyes are shut|{s} {is} keeping {P} eyes closed|{P} eyelids are closed"
        "|{s} {is} asleep|{s} sleep[s]|{s} doze[s]|{s} close[s] {P} eyes|{s} close[s] both eyes"
        "|{s} nap[s]|{s} keep[s] {P} eyes shut|{s} {is} sleeping|{s} {has} both eyes shut",
    ),
    "hearts": by_part(
        before="lovestruck|love-struck|heart-eyed|smitten|enamoured|infatuated",
        having="heart eyes|hearts for eyes|heart-shaped eyes|love hearts for eyes|eyes like hearts"
        "|hearts instead of eyes|red hearts for eyes|hearts in the eyes|love-heart eyes"
        "|two hearts as eyes|eyes full of hearts|hearts where the eyes should be"
        "|adoring heart eyes|loving eyes",
        doing="in love|head over heels in love|smitten|lovestruck|madly in love"
        "|with hearts for eyes|utterly infatuated|heart-eyed|who fell in love|hearts in {p} eyes"
        "|adoring someone",
        clause="{P} eyes are hearts|{P} eyes are heart-shaped|{s} {is} in love"
        "|{P} eyes are red hearts|{s} {has} hearts instead of eyes|love hearts replace {P} eyes"
        "|{s} {is} smitten|{s} {has} fallen in love|{s} fell in love|{s} {is} lovestruck"
        "|{s} {has} hearts in {P} eyes|there are hearts in {P} eyes|hearts pop out of {P} eyes"
        "|there are hearts where {P} eyes should be",
    ),
    "wink": by_part(
        before="winking",
        having="a wink|one eye winking|a winking eye|one eye closed|one eye shut|a cheeky wink"
        "|one eye open and one closed|only one eye open|a playful wink|one winking eye",
        doing="winking|giving a wink|winking at you|with a wink|winking with one eye"
        "|one eye closed|closing one eye|shutting one eye|winking cheekily|one eye shut|who winks"
        "|closing one eye at you|winking at the viewer",
        clause="{s} {is} winking|one of {P} eyes is closed|{s} {is} winking at us|one eye is shut"
        "|{s} {is} giving a wink|one of {P} eyes winks|only one of {P} eyes is open|{s} wink[s]"
        "|{s} wink[s] at you|{s} close[s] one eye|{s} give[s] us a wink|{s} wink[s] cheekily"
        "|{s} {has} one eye shut",
    ),
    "wide": by_part(
        before="wide-eyed|goggle-eyed|startled|astonished|saucer-eyed|surprised|amazed|shocked"
        "|baffled",
        having="wide eyes|wide-open eyes|big surprised eyes|eyes wide open|huge eyes|bulging eyes"
        "|staring eyes|saucer eyes|astonished eyes|startled eyes|big round eyes|enormous eyes"
        "|goggling eyes|eyes like saucers|eyes open wide|large eyes|big eyes|big staring eyes",
        doing="wide-eyed|staring|goggling|eyes wide open|staring with big eyes|eyes popping"
        "|looking surprised|with eyes like saucers|surprised|amazed|who stares|shocked"
        "|looking astonished|looking shocked|flabbergasted",
        clause="{P} eyes are wide|{P} eyes are wide open|{P} eyes are huge|{s} {is} staring"
        "|{P} eyes are big and surprised|{P} eyes are bulging|{P} eyes are as big as saucers"
        "|{s} {has} opened {P} eyes wide|{s} stare[s]|{s} goggle[s]|{s} look[s] surprised"
        "|{s} open[s] {P} eyes wide|{s} look[s] astonished|{s} {is} wide-eyed|{s} {is} surprised"
        "|{s} {is} amazed|{s} look[s] shocked",
    ),
}  # fmt: skip
EXPRESSION: FreeWords = {
    "smiling": by_part(
        before="smiling|happy|cheerful|grinning|joyful|merry|beaming|jolly|cheery|delighted"
        "|friendly|smiley|glad|good-humoured|laughing|joyous|content|overjoyed|elated|gleeful"
        "|upbeat",
        having="a smile|a big smile|a happy face|a grin|a broad grin|a cheerful face|a wide smile"
        "|a happy smile|a friendly smile|a cheerful smile|a beaming face|a smiling mouth"
        "|a smile on the lips|a joyful look|a happy expression|a warm smile|a laughing face"
        "|an ear-to-ear grin|a cheeky smile",
        doing="smiling|with a smile|looking happy|grinning happily|grinning|beaming"
        "|looking cheerful|grinning from ear to ear|smiling broadly|full of joy|in a good mood"
        "|happily smiling|with a big grin|smiling happily|looking pleased|looking delighted"
        "|all smiles|happy|who smiles|who grins|who looks happy|laughing|chuckling|visibly happy"
        "|overjoyed|in high spirits|as happy as can be",
        clause="{s} {is} smiling|{s} {is} happy|{s} {is} grinning|{s} {is} in a good mood"
        "|there is a smile on {P} face|{s} {is} beaming|{s} {is} cheerful|{P} mouth is smiling"
        "|a grin brightens {P} face|{s} {is} full of joy|{P} smile is broad|{s} smile[s]"
        "|{s} grin[s]|{s} beam[s]|{s} laugh[s]|{s} look[s] happy|{s} seem[s] cheerful"
        "|{s} smile[s] broadly|{s} grin[s] from ear to ear|{s} could not be happier"
        "|{s} look[s] delighted|{s} {is} all smiles|{s} {is} amused",
    ),
    "sad": by_part(
        before="sad|unhappy|gloomy|miserable|sorrowful|melancholy|glum|dejected|mournful|frowning"
        "|downcast|depressed|heartbroken|tearful|sad-looking|crying|weeping|upset|forlorn"
        "|crestfallen|despondent|sorry-looking",
        having="a sad face|a sad frown|a frown|a gloomy face|a sad look|a downturned mouth"
        "|an unhappy mouth|a miserable look|a mournful face|a sad mouth|a sorrowful expression"
        "|a glum face|a sad expression|an unhappy face|a pout|tears|a tearful face"
        "|a disappointed look",
        doing="looking sad|with a sad frown|frowning sadly|unhappy|looking unhappy|frowning"
        "|sulking|feeling down|down in the dumps|looking miserable|close to tears|looking gloomy"
        "|pouting|about to cry|sad|with drooping lips|looking dejected|visibly sad|looking glum"
        "|crying|weeping|sobbing|crying {p} eyes out|in tears|who looks sad|grieving"
        "|on the verge of tears|moping|who frowns|disappointed",
        clause="{s} {is} sad|{s} {is} unhappy|{s} {is} frowning|{s} {is} miserable"
        "|{P} mouth is sad|the corners of {P} mouth turn down|{s} {is} close to tears"
        "|{s} {is} heartbroken|{s} {is} gloomy|{P} face is sad|{s} {is} feeling blue"
        "|{s} {is} down|{s} cr[ies/y]|{s} weep[s]|{s} frown[s]|{s} look[s] sad"
        "|{s} seem[s] unhappy|{s} sulk[s]|{s} look[s] miserable|{s} {is} in tears"
        "|{s} feel[s] down|{s} {is} crying|{s} sob[s]|{s} {is} disappointed",
    ),
    "tongue out": by_part(
        before="tongue-wagging",
        having="the tongue out|the tongue sticking out|a tongue hanging out|{p} tongue out"
        "|a lolling tongue|{p} tongue stuck out|{p} tongue sticking out|a tongue poking out"
        "|a pink tongue showing|the tongue showing",
        doing="sticking out the tongue|with the tongue out|tongue out|sticking {p} tongue out"
        "|poking out {p} tongue|showing the tongue|tongue hanging out|tongue sticking out"
        "|sticking out {p} tongue|blowing a raspberry|showing {p} tongue|putting out {p} tongue"
        "|pulling a face with the tongue out|tongue stuck out|poking {p} tongue at you"
        "|letting {p} tongue hang out|who sticks out {p} tongue|tongue lolling"
        "|with {p} tongue out|with {p} tongue hanging out|making a face with {p} tongue",
        clause="{P} tongue is out|{P} tongue sticks out|{s} {is} sticking out {P} tongue"
        "|{s} {is} showing {P} tongue|{P} tongue is hanging out|{P} tongue pokes out of {P} mouth"
        "|{s} {has} stuck {P} tongue out|you can see {P} tongue|{s} stick[s] out {P} tongue"
        "|{s} stick[s] {P} tongue out|{s} show[s] {P} tongue|{s} poke[s] out {P} tongue"
        "|{s} put[s] out {P} tongue|{s} let[s] {P} tongue hang out|{s} blow[s] a raspberry"
        "|{P} tongue hangs out|{P} tongue lolls out|{s} pull[s] a face and show[s] {P} tongue",
    ),
    "serious": by_part(
        before="serious|expressionless|stern|solemn|poker-faced|straight-faced|unsmiling|deadpan"
        "|stoic|impassive|serious-looking|emotionless|stone-faced|calm|composed|grave|no-nonsense"
        "|sober",
        having="a serious face|a straight mouth|a straight face|a poker face|a blank face"
        "|a neutral expression|a serious expression|a serious look|a deadpan expression"
        "|a stern look|a flat mouth|a blank expression|an impassive face|a neutral mouth"
        "|a neutral face|a level mouth|no smile|a solemn look",
        doing="looking serious|with a serious face|with a straight mouth|expressionless|unsmiling"
        "|keeping a straight face|stern|without any emotion|looking stern|deadpan|looking neutral"
        "|poker-faced|showing no emotion|with a blank face|without expression|looking solemn"
        "|serious|in earnest|who looks serious|calm and serious|without a smile"
        "|neither happy nor sad|calm|composed|all business|in a serious mood"
        "|who keeps a straight face|straight-faced",
        clause="{s} {is} serious|{P} face is serious|{P} mouth is straight"
        "|{P} face shows no emotion|{P} expression is neutral|{s} {is} keeping a straight face"
        "|{P} mouth is a straight line|{P} face is blank|{P} look is stern"
        "|{s} {is} expressionless|{s} look[s] serious|{s} show[s] no emotion"
        "|{s} keep[s] a straight face|{s} look[s] stern|{s} do[es] not smile|{s} look[s] calm"
        "|{s} seem[s] serious|{s} make[s] a serious face|{s} {is} calm"
        "|{s} {is} neither happy nor sad",
    ),
    "angry": by_part(
        before="angry|furious|mad|enraged|irate|cross|livid|annoyed|grumpy|raging|angry-looking"
        "|bad-tempered|fuming|irritated|scowling|grimacing|snarling|hopping-mad|growling"
        "|ill-tempered|outraged",
        having="clenched teeth|gritted teeth|bared teeth|an angry face|a grimace|an angry look"
        "|a scowl|a furious look|an angry expression|teeth bared in anger|a snarl|angry eyebrows"
        "|a mean look|a furious face|teeth showing in anger|a cross face|grinding teeth"
        "|a raging temper",
        doing="looking angry|gritting the teeth|with clenched teeth|baring the teeth|furious"
        "|fuming|gritting {p} teeth|baring {p} teeth|grimacing|scowling|snarling|looking mad"
        "|looking furious|clenching {p} teeth|in a rage|seething|full of anger|teeth clenched"
        "|visibly annoyed|angry|boiling with rage|in a bad temper|teeth gritted|who looks angry"
        "|who grits {p} teeth|mad with rage|hopping mad|showing {p} teeth|teeth bared"
        "|full of rage|in a foul mood|pissed off|enraged|growling|grinding {p} teeth"
        "|losing {p} temper|very angry",
        clause="{s} {is} angry|{s} {is} furious|{s} {is} gritting {P} teeth|{P} teeth are clenched"
        "|{s} {is} mad|{s} {is} in a rage|{s} {is} baring {P} teeth|{s} {is} scowling"
        "|{P} face is angry|{s} {is} cross|{s} {is} boiling with anger|{P} teeth are bared"
        "|{s} grit[s] {P} teeth|{s} snarl[s]|{s} scowl[s]|{s} look[s] angry|{s} look[s] furious"
        "|{s} clench[es] {P} teeth|{s} grimace[s]|{s} {is} annoyed|{s} bare[s] {P} teeth"
        "|{s} show[s] {P} teeth|{s} seethe[s]|{s} {has} lost {P} temper|{s} {is} fuming"
        "|{s} {is} hopping mad|{s} {is} enraged",
    ),
    "shouting": by_part(
        before="shouting|screaming|yelling|open-mouthed|howling|roaring|hollering|loud|shrieking"
        "|bellowing",
        having="the mouth wide open|an open mouth|a wide-open mouth|a screaming mouth"
        "|a mouth agape|a loud scream|a gaping mouth|{p} mouth wide open|a shouting mouth"
        "|a big open mouth|{p} mouth open in a shout",
        doing="shouting|screaming|with the mouth wide open|yelling|hollering|bellowing|roaring"
        "|shrieking|howling|mouth agape|crying out|open-mouthed|screaming loudly|shouting at us"
        "|mouth wide open|letting out a scream|yelling loudly|calling out|bawling|mouth open"
        "|who screams|who is shouting|who yells|at the top of {p} lungs|screaming {p} head off"
        "|with an open mouth|yelling something|mouth gaping|who shouts",
        clause="{s} {is} shouting|{s} {is} screaming|{s} {is} yelling|{P} mouth is wide open"
        "|{s} {is} bellowing|{P} mouth is open in a scream|{s} {is} crying out|{s} {is} roaring"
        "|{s} {is} letting out a yell|a scream comes from {P} open mouth|{s} shout[s]"
        "|{s} scream[s]|{s} yell[s]|{s} roar[s]|{s} bellow[s]|{s} shriek[s]|{s} howl[s]"
        "|{s} shout[s] at us|{s} scream[s] loudly|{s} yell[s] at the top of {P} lungs"
        "|{s} open[s] {P} mouth wide|{s} holler[s]|{P} mouth gapes",
    ),
}  # fmt: skip
BACKGROUND = by_value(
    white="white|snow-white|plain white|blank|blank white|off-white|pure white|bright white"
    "|clean white",
    blue="blue|light blue|sky-blue|baby-blue|pale blue|powder-blue|soft blue|sky blue|azure"
    "|icy blue|pastel blue|bluish",
    pink="pink|rose|pale pink|light pink|rosy|salmon-pink|blush-pink|baby-pink|soft pink"
    "|pastel pink|pinkish|candy-pink",
    green="green|mint-green|mint|pale green|light green|pistachio|pastel green|soft green"
    "|sage-green|apple-green|greenish|minty|lime-green|spring-green",
    yellow="yellow|pale yellow|lemon|light yellow|pastel yellow|butter-yellow|buttery|soft yellow"
    "|primrose|vanilla|lemon-yellow|yellowish|sunny yellow|custard-yellow",
    lavender="lavender|lilac|light purple|violet|mauve|purple|pale violet|pastel purple"
    "|pale purple|soft purple|wisteria|lavender-coloured|light violet|purplish",
    grey="grey|gray|slate|stone-grey|concrete-grey|dull grey|smoky grey|ash-grey|dark grey"
    "|steel-grey|greyish|slate-grey|silver-grey|medium grey",
)
WHERE = split(
    "on a {c} background|in front of a {c} background|against a {c} wall|{c} background"
    "|in front of a {c} wall|against {c}|on {c}|{c} backdrop|before a {c} backdrop|{c} wall behind"
    "|{c} behind|with a {c} backdrop|set against a {c} screen|with a {c} background"
    "|{c} in the background|before a {c} curtain|with {c} behind {o}|against a {c} background"
    "|posed before a {c} canvas|surrounded by {c}|on a {c} ground|a {c} wall behind {o}"
    "|{c} wall in the background|before a {c} wall|against a {c} backdrop|background: {c}"
    "|{c} all around"
)
WHERE_CLAUSE = split(
    "the background is {c}|behind {o} everything is {c}|the wall behind {o} is {c}"
    "|the backdrop is {c}|the wall is {c}|behind {o} there is a {c} wall"
    "|everything behind {o} is {c}|the background colour is {c}|there is a {c} wall behind {o}"
    "|{c} is the colour of the background|behind {o} is a {c} backdrop"
    "|the rest of the picture is {c}|it is all {c} behind {o}"
)
