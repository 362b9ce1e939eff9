"""The words of free sentences: several dozen for each attribute, by the part of speech.

    before   adjectives before the person: "a bearded man"
    having   noun phrases after "with" or "has"
    wearing  noun phrases after "wearing" or "in"
    doing    phrases after a comma: "…, grinning"
    clause   whole statements; {P} stands for "her", {s} for "she", {is} and {has} for its verbs

{c} takes a colour, or nothing. Alternatives stand between bars.
"""

from __future__ import annotations

Forms = dict[str, list[str]]  # part of speech → wordings
FreeWords = dict[str, Forms]  # value of an attribute → its forms


def split(words: str) -> list[str]:
    """Return the alternatives between the bars."""
    return [word.strip() for word in words.split("|")]


def by_part(**parts: str) -> Forms:
    """Return the wordings of each part of speech."""
    return {part: split(words) for part, words in parts.items()}


def by_value(**values: str) -> dict[str, list[str]]:
    """Return the wordings of each value."""
    return {value: split(words) for value, words in values.items()}


HAIR_COLOR = by_value(
    black="black|jet-black|jet black|raven|raven-black|ebony|coal-black|inky black|pitch-black"
    "|onyx|dark|black-dyed|midnight-black|very dark|sable",
    brown="brown|chestnut|brunette|brunet|hazel|mousy brown|mousy|chocolate|chocolate-brown|walnut"
    "|coffee-coloured|coffee-brown|light brown|dark brown|nut-brown|cocoa|hazelnut|medium brown"
    "|chestnut-brown|wood-brown",
    blond="blond|blonde|golden|fair|flaxen|honey-blond|honey-coloured|straw-coloured|sandy|yellow"
    "|sun-bleached|wheat-coloured|gold|dirty blonde|corn-coloured|golden-blond|light blond"
    "|blondish|towheaded|yellowish|honey",
    red="red|ginger|copper|auburn|carrot-red|carroty|orange|flame-red|fiery|fiery red"
    "|rust-coloured|rusty|russet|coppery|copper-red|reddish|bright red|titian|foxy red"
    "|carrot-coloured",
    grey="grey|gray|silver|silvery|ash-grey|steel-grey|greying|graying|salt-and-pepper|ashen"
    "|iron-grey|silver-grey|white|whitish|grizzled|silver-white|greyish|snowy|hoary",
    pink="pink|pink-dyed|rose|rosy|fuchsia|bubblegum-pink|bubblegum|hot-pink|hot pink|magenta"
    "|candy-pink|dyed pink|pastel pink|rose-coloured|flamingo-pink|rose-pink|bright pink|pinkish",
)
# Nouns that name a person by the colour of the hair, if there are any.
HAIRED = by_value(
    black="",
    brown="brunette",
    blond="blonde|blond|towhead",
    red="redhead|ginger|carrot-top",
    grey="silver fox",
    pink="",
)
HAIR_STYLE: FreeWords = {
    "long straight": by_part(
        before="long-haired|straight-haired",
        having="long {c} hair|long straight {c} hair|straight {c} hair down to the shoulders"
        "|straight {c} hair|sleek long {c} hair|{c} hair hanging straight down"
        "|smooth long {c} locks|long flat {c} hair|poker-straight {c} hair"
        "|shoulder-length straight {c} hair|{c} hair that falls straight|long smooth {c} hair"
        "|{c} hair past the shoulders|straight long {c} hair|lank {c} hair"
        "|long, straight {c} hair|{c} hair worn long and straight",
        clause="{P} {c} hair is long and straight|{P} {c} hair falls straight down"
        "|{P} {c} hair hangs straight past the shoulders|{P} {c} hair is long"
        "|{P} {c} hair reaches below the shoulders|{P} long {c} hair is sleek and straight"
        "|{P} straight {c} hair hangs down|{P} {c} hair flows straight over the shoulders",
    ),
    "long wavy": by_part(
        before="wavy-haired|curly-haired",
        having="long wavy {c} hair|wavy {c} hair|big wavy {c} hair|{c} waves|flowing {c} waves"
        "|voluminous {c} hair|long curly {c} hair|loose {c} curls|big {c} hair|wavy {c} locks"
        "|billowing {c} hair|a mane of {c} hair|a wavy {c} mane|{c} hair in big waves"
        "|{c} hair in long waves|long, wavy {c} hair|thick wavy {c} hair|{c} hair full of waves"
        "|rolling {c} waves|bouncy {c} hair|curly {c} hair",
        clause="{P} {c} hair is long and wavy|{P} {c} hair falls in waves|{P} {c} hair is wavy"
        "|{P} {c} hair flows in big waves|{P} {c} hair tumbles in loose curls"
        "|{P} wavy {c} hair comes down to the shoulders|{P} {c} hair is big and wavy"
        "|waves of {c} hair fall over {P} shoulders|{P} {c} hair is curly",
    ),
    "bob": by_part(
        before="bobbed",
        having="a {c} bob|{c} hair in a bob|a {c} bob cut|chin-length {c} hair|a neat {c} bob"
        "|{c} hair cut at the chin|jaw-length {c} hair|bobbed {c} hair|a {c} pageboy cut"
        "|a {c} bob haircut|{c} hair cut in a bob|{c} hair down to the chin|a short {c} bob"
        "|a smooth {c} bob|a chin-length {c} bob|{c} hair that ends at the jaw|a {c} pageboy"
        "|a blunt {c} bob|a classic {c} bob|{c} hair bobbed at the chin|a tidy {c} bob",
        clause="{P} {c} hair is cut in a bob|{P} {c} hair ends at the chin|{P} {c} hair is bobbed"
        "|{P} {c} hair is chin-length|{P} {c} hair stops at the jaw|{P} {c} bob is neat"
        "|{P} {c} hair is trimmed to a bob|{P} {c} hair comes down to {P} chin",
    ),
    "bun": by_part(
        having="a {c} bun|{c} hair in a bun|{c} hair tied up in a bun|a {c} top knot|a {c} topknot"
        "|a {c} chignon|{c} hair up in a bun|{c} hair pulled up into a bun|a {c} bun on top"
        "|a {c} updo|{c} hair gathered in a knot|{c} hair knotted on top|a {c} hair bun"
        "|pinned-up {c} hair|tied-up {c} hair|{c} hair worn in a bun"
        "|{c} hair pulled back in a bun|a {c} ballerina bun|a {c} man bun|a {c} knot of hair"
        "|{c} hair put up|{c} hair done up|a little {c} bun on top of the head"
        "|{c} hair scraped into a bun",
        clause="{P} {c} hair is up in a bun|{P} {c} hair is tied up|{P} {c} hair is tied in a bun"
        "|{P} {c} hair is pinned up|{P} {c} hair is gathered in a knot on top"
        "|{P} {c} hair is pulled into a bun|{P} {c} hair is done up in a bun|{P} {c} hair is up"
        "|{P} {c} hair is twisted into a bun|{P} {c} hair is worn in a bun"
        "|{s} {has} tied {P} {c} hair into a bun|a {c} bun sits on top of {P} head",
    ),
    "afro": by_part(
        before="frizzy-haired|afro-haired",
        having="a {c} afro|an afro of {c} hair|a big round {c} afro|a {c} fro|frizzy {c} hair"
        "|a cloud of {c} curls|a natural {c} afro|puffy {c} hair|tight {c} curls|a huge {c} afro"
        "|a big {c} ball of hair|a round {c} hairdo|{c} afro hair|a big {c} fro|fuzzy {c} hair"
        "|kinky {c} hair|an enormous {c} afro|a puffy {c} afro|a fluffy {c} afro"
        "|a seventies {c} afro|{c} hair in an afro|a round {c} mop of tight curls",
        clause="{P} {c} hair is a big afro|{P} {c} hair is worn as an afro|{P} {c} afro is huge"
        "|{P} {c} hair stands out in an afro|{P} {c} hair is big and round|{P} {c} hair is frizzy"
        "|{P} {c} hair is puffed out in an afro|a big {c} afro surrounds {P} face"
        "|{P} {c} curls are tight and round",
    ),
    "dreadlocks": by_part(
        before="dreadlocked|dread-haired",
        having="{c} dreadlocks|long {c} dreads|{c} hair in dreadlocks|{c} dreads|{c} locs"
        "|{c} rasta hair|{c} rasta locks|{c} hair in dreads|long {c} dreadlocks|matted {c} locks"
        "|twisted {c} locks|{c} hair twisted into locs|long {c} locs|ropes of {c} hair"
        "|thick {c} dreads|a head of {c} dreadlocks|{c} rastas|hanging {c} dreadlocks"
        "|{c} dread locks",
        clause="{P} {c} hair is in dreadlocks|{P} {c} hair is twisted into locs"
        "|{P} {c} hair hangs in dreads|{P} {c} dreads hang down|{P} {c} dreadlocks are long"
        "|{P} {c} hair is in dreads|{s} {has} let {P} {c} hair grow into dreadlocks"
        "|{P} {c} hair falls in thick dreadlocks",
    ),
    "short": by_part(
        before="short-haired|close-cropped|crop-haired",
        having="short {c} hair|{c} hair cut short|a short {c} haircut|cropped {c} hair"
        "|close-cropped {c} hair|a {c} buzz cut|a {c} crew cut|a {c} crop|short-cut {c} hair"
        "|trimmed {c} hair|neat short {c} hair|very short {c} hair|a short {c} cut"
        "|short flat {c} hair|short-cropped {c} hair|closely cut {c} hair"
        "|a {c} short back and sides|a tidy short {c} haircut|{c} hair that is short"
        "|short, {c} hair|a {c} military cut",
        clause="{P} {c} hair is short|{P} {c} hair is cut short|{P} {c} hair is cropped"
        "|{P} {c} hair is closely cropped|{P} {c} hair is trimmed short|{P} {c} haircut is short"
        "|{s} {has} cut {P} {c} hair short|{P} {c} hair is kept short",
    ),
    "quiff": by_part(
        before="quiffed",
        having="a {c} quiff|shaved sides and a {c} quiff|{c} hair in a quiff|a {c} pompadour"
        "|a {c} undercut|a {c} tuft on top|{c} hair swept up|brushed-up {c} hair"
        "|combed-up {c} hair|a {c} faux hawk|a {c} mohawk|{c} hair standing up at the front"
        "|a {c} forelock|shaved sides and {c} hair on top|a tall {c} quiff|a {c} tuft of hair"
        "|a {c} rockabilly quiff|{c} hair gelled up|a {c} shock of hair on top"
        "|an undercut with {c} hair on top|a swept-up {c} quiff|a {c} cockscomb",
        clause="{P} {c} hair is styled in a quiff|{P} {c} hair is swept up|{P} {c} quiff stands up"
        "|{P} {c} hair is brushed up|{P} {c} hair is shaved at the sides"
        "|{P} {c} hair stands up in a quiff|{P} {c} hair is combed up at the front"
        "|the sides of {P} head are shaved and the {c} top is long",
    ),
}  # fmt: skip
BARE_HAIR = by_part(
    before="{c}-haired",
    having="{c} hair|{c} locks|{c} hair on the head|hair that is {c}|{c}-coloured hair|hair in {c}"
    "|hair dyed {c}|naturally {c} hair",
    clause="{P} hair is {c}|{P} hair colour is {c}|{s} {has} {c} hair|the hair is {c}"
    "|the colour of {P} hair is {c}|{s} {has} dyed {P} hair {c}|{P} locks are {c}",
)
HEADWEAR: FreeWords = {
    "none": by_part(
        before="bareheaded|bare-headed|hatless",
        having="no hat|nothing on the head|no headwear|no cap|a bare head|no hat on"
        "|an uncovered head|no head covering|no hat or cap",
        doing="without a hat|bareheaded|without any headwear|not wearing a hat|hatless"
        "|wearing no hat|without a cap|without anything on the head|head uncovered",
        clause="there is no hat on {P} head|{s} {is} bareheaded|{s} {is} not wearing a hat"
        "|{P} head is bare|{s} {is} without a hat",
    ),
    "hat": by_part(
        before="hat-wearing|hatted",
        wearing="a {c} hat|a wide-brimmed {c} hat|a {c} sun hat|a brimmed {c} hat|a floppy {c} hat"
        "|a {c} fedora|a {c} panama|a broad-brimmed {c} hat|a {c} sunhat|a {c} trilby"
        "|a {c} cowboy hat|a {c} hat with a wide brim|a big {c} hat|a {c} hat with a brim"
        "|a large {c} summer hat|a {c} bowler|a {c} brimmed hat|a {c} felt hat|a {c} straw hat"
        "|a {c} hat with a broad rim",
        clause="there is a {c} hat on {P} head|{P} hat is {c} and wide-brimmed"
        "|a {c} hat covers {P} hair|a broad {c} brim shades {P} face|a {c} hat sits on {P} head"
        "|{P} {c} hat has a wide brim",
    ),
    "beanie": by_part(
        before="beanie-wearing|beanied",
        wearing="a {c} beanie|a {c} knit cap|a {c} woolly cap|a {c} knitted cap|a {c} wool hat"
        "|a {c} woollen hat|a {c} bobble hat|a {c} knitted hat|a {c} watch cap|a {c} toque"
        "|a {c} tuque|a {c} woolly hat|a {c} winter cap|a {c} stocking cap|a {c} cap"
        "|a {c} wool cap|a {c} knit hat|a {c} woollen cap|a {c} beanie hat|a {c} skullcap"
        "|a {c} beany|a close-fitting {c} cap",
        clause="there is a {c} beanie on {P} head|a {c} knit cap covers {P} hair|{P} beanie is {c}"
        "|a {c} woolly cap sits on {P} head|{P} {c} beanie is pulled down"
        "|{P} cap is {c} and knitted|{P} knitted cap is {c}",
    ),
    "turban": by_part(
        before="turbaned|turban-wearing",
        wearing="a {c} turban|a {c} head wrap|a {c} headwrap|a {c} cloth wound around the head"
        "|a {c} wrapped headcloth|a {c} pagri|a {c} dastar|a {c} head scarf|a wound {c} turban"
        "|a wrapped {c} turban|a {c} cloth around the head|a {c} headscarf|a {c} Sikh turban"
        "|a {c} scarf wrapped round the head|a {c} fabric wrapped about the head",
        clause="there is a {c} turban on {P} head|a {c} turban covers {P} hair|{P} turban is {c}"
        "|{P} head is wrapped in a {c} cloth|{P} hair is wrapped in a {c} turban"
        "|a {c} cloth is wound around {P} head|{P} headwrap is {c}",
    ),
    "earflap hat": by_part(
        wearing="a {c} hat with earflaps|a {c} earflap hat|a {c} ski hat with earflaps"
        "|a {c} trapper hat|a {c} ushanka|a {c} hat with ear flaps|a {c} fur hat with flaps"
        "|a {c} trapper cap|a {c} winter hat with earflaps|a {c} hat with flaps over the ears"
        "|a {c} cap with ear flaps|a {c} ear-flap hat|a {c} chullo|a {c} deerstalker"
        "|an ear-flapped {c} hat|a {c} cap with earflaps|a {c} aviator hat|a {c} bomber hat"
        "|a warm {c} hat that covers the ears|a {c} snow hat with flaps|a {c} Russian winter hat",
        clause="there is a {c} hat with earflaps on {P} head|{P} {c} hat has earflaps"
        "|the flaps of {P} {c} hat cover the ears|{P} {c} cap has flaps over the ears"
        "|{P} trapper hat is {c}|{P} ears are covered by the flaps of a {c} hat"
        "|{P} earflap hat is {c}",
    ),
}  # fmt: skip
BARE_HEADWEAR = by_part(
    wearing="{c} headwear|something {c} on the head|a {c} head covering|{c} headgear"
    "|a {c} thing on the head|a {c} piece of headwear",
    clause="{P} headwear is {c}|the thing on {P} head is {c}|what {s} {has} on {P} head is {c}"
    "|there is something {c} on {P} head|{P} head is covered in {c}",
)
FABRIC_COLOR = by_value(
    red="red|scarlet|crimson|cherry-red|cherry|ruby|ruby-red|blood-red|tomato-red|vermilion"
    "|bright red|fire-engine red|cardinal-red|burgundy|wine-red|maroon|brick-red|poppy-red",
    blue="blue|royal blue|navy|navy-blue|azure|cobalt|cobalt-blue|sapphire|denim-blue|bright blue"
    "|cornflower-blue|cerulean|ocean-blue|ultramarine|sea-blue|mid-blue|jeans-blue|electric blue",
    green="green|emerald|emerald-green|forest-green|leaf-green|grass-green|jade|jade-green"
    "|bottle-green|moss-green|shamrock-green|fern-green|olive-green|pine-green|bright green"
    "|ivy-green",
    yellow="yellow|bright yellow|lemon|lemon-yellow|canary|canary-yellow|sunny yellow|mustard"
    "|golden|gold|sunflower-yellow|saffron|amber|banana-yellow|mustard-yellow|sun-yellow"
    "|golden-yellow",
    black="black|dark|jet-black|charcoal|coal-black|ebony|pitch-black|inky|onyx|dark-coloured"
    "|charcoal-black|midnight-black|raven-black|all-black|blackish",
    white="white|off-white|snow-white|ivory|cream|chalk-white|pearl-white|bone-white"
    "|cream-coloured|pure white|milk-white|eggshell|bright white|snowy white|whitish|cream-white",
    purple="purple|violet|plum|mauve|lilac|aubergine|grape|amethyst|eggplant-purple|lavender"
    "|plum-coloured|deep purple|royal purple|grape-purple|violet-coloured|indigo|purplish",
)
CLOTHES: FreeWords = {
    "hoodie": by_part(
        before="hoodie-wearing|hooded",
        wearing="a {c} hoodie|a {c} hooded sweatshirt|a hoodie in {c}|a {c} hooded top|a {c} hoody"
        "|a {c} sweatshirt with a hood|a {c} zip hoodie|a {c} hooded sweater"
        "|a {c} pullover with a hood|a {c} hooded pullover|a {c} top with a hood"
        "|a casual {c} hoodie|a {c} hooded jacket|a loose {c} hoodie|a {c} sweatshirt"
        "|a comfy {c} hoodie|a {c} hooded jersey",
        clause="{P} hoodie is {c}|{P} {c} top has a hood|{P} {c} sweatshirt has a hood"
        "|{s} {has} a {c} hoodie on|the hoodie is {c}",
    ),
    "t-shirt": by_part(
        wearing="a {c} t-shirt|a {c} tee|a plain {c} t-shirt|a {c} tshirt|a {c} t shirt"
        "|a {c} tee shirt|a plain {c} tee|a {c} crew-neck shirt|a {c} crew neck"
        "|a {c} round-neck shirt|a {c} shirt|a short-sleeved {c} shirt|a simple {c} top"
        "|a simple {c} t-shirt|a {c} crew-neck tee|a {c} crewneck|a t-shirt in {c}"
        "|a casual {c} t-shirt|a basic {c} tee",
        clause="{P} t-shirt is {c}|{P} tee is {c}|{s} {has} a plain {c} t-shirt on"
        "|the t-shirt is {c}|{P} plain shirt is {c}",
    ),
    "overalls": by_part(
        before="overall-clad|dungaree-clad",
        wearing="{c} overalls|{c} dungarees|a pair of {c} overalls|{c} bib overalls"
        "|a pair of {c} dungarees|{c} work overalls|{c} coveralls|{c} farmer's overalls"
        "|overalls in {c}|a {c} bib-and-brace|{c} denim overalls|{c} bibs|a {c} boiler suit"
        "|{c} dungarees with straps|{c} workman's overalls|{c} overalls with shoulder straps"
        "|a {c} dungaree|{c} mechanic's overalls",
        clause="{P} overalls are {c}|{P} dungarees are {c}|{s} {has} {c} overalls on"
        "|the overalls are {c}|the straps of {P} {c} dungarees go over the shoulders",
    ),
    "blazer": by_part(
        before="blazer-wearing|suited|smartly dressed",
        wearing="a {c} blazer|a {c} jacket over a white shirt|a {c} suit jacket|a {c} sport coat"
        "|a smart {c} jacket|a {c} suit|a {c} dinner jacket|a tailored {c} jacket"
        "|a formal {c} jacket|a {c} sports jacket|a {c} jacket and a shirt"
        "|a {c} blazer over a shirt|a blazer in {c}|a {c} business jacket|a {c} jacket"
        "|an elegant {c} blazer|a {c} tuxedo jacket|a {c} office blazer|a {c} jacket with lapels",
        clause="{P} blazer is {c}|{P} jacket is {c}|{s} {has} a {c} blazer on|the blazer is {c}"
        "|{P} suit jacket is {c}|{P} {c} jacket has lapels",
    ),
    "sweater": by_part(
        wearing="a {c} sweater with a collar|a {c} collared sweater|a {c} jumper|a {c} sweater"
        "|a {c} pullover|a {c} knit|a {c} knitted jumper|a {c} sweater over a collared shirt"
        "|a woolly {c} jumper|{c} knitwear|a {c} knitted pullover|a {c} knit sweater"
        "|a {c} wool sweater|a {c} jumper with a collar|a {c} pullover over a shirt"
        "|a warm {c} sweater|a sweater in {c}|a {c} woollen sweater|a {c} cardigan"
        "|a {c} knitted sweater|a collared {c} jumper",
        clause="{P} sweater is {c}|{P} jumper is {c}|{s} {has} a {c} sweater on|the jumper is {c}"
        "|a shirt collar peeks out of {P} {c} sweater|{P} {c} pullover has a collar"
        "|{P} pullover is {c}",
    ),
}  # fmt: skip
BARE_CLOTHES = by_part(
    wearing="{c} clothes|something {c}|{c} clothing|a {c} outfit|{c} garments|a {c} garment|{c}"
    "|an outfit in {c}|a {c} top",
    clause="{P} clothes are {c}|{P} outfit is {c}|{s} {is} dressed in {c}|{P} clothing is {c}"
    "|{P} top is {c}|what {s} {has} on is {c}|{s} {is} clad in {c}",
)
