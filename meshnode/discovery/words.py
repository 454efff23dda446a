"""The words of pairing codes: 256 that are easy to say, to spell and to tell apart.

No two begin with the same four letters, and no two are closer than three letters changed, so that a slip of the tongue
or of a finger makes a word that is not in the list, and can be named.
"""

from __future__ import annotations

WORDS: tuple[str, ...] = tuple(
    """
    abacus acorn album almond amber anchor angle apron arctic atlas autumn aviary badge bamboo banjo barrel basket
    beacon beaver bonfire bottle breeze butter cactus camel canoe carpet castle celery cellar chalk cherry cider circus
    clover cobalt copper cotton cradle crayon cymbal dahlia daisy dancer deck denim desert diamond dolphin donkey drawer
    drizzle drummer dune dynamo echo eclipse elbow emblem engine evening eyebrow fabric falcon feast feather fennel
    fiddle filter fjord flute forest fossil freckle furnace galaxy garden garlic gazelle geyser ginger giraffe glacier
    goblet gondola granite grape guitar gypsum hammock hamster harbor harvest helmet hickory horizon hurdle hyena igloo
    iguana indigo inkwell insect island ivory jaguar jasmine jelly jigsaw jubilee judo juniper kayak kelp kimono kitchen
    kiwi knuckle koala ladder lagoon lantern lemon lettuce library lilac linen lizard lobster locket lotus lullaby lynx
    magnet mammoth maple meadow mimosa mirror mitten monsoon mosaic muffin museum mustard napkin narrow nectar needle
    nickel nomad nugget nutmeg oasis oatmeal obelisk ocean olive onion orbit orchid oregano ostrich oxygen palace
    panther papaya pasture peanut pebble pelican pencil piano picnic pigeon pillow pixel platinum poem poplar prairie
    prism pudding puzzle pyramid quartz quilt quiver quokka rabbit radish raft rainbow ranch raven rhubarb ribbon robin
    rubber ruby saffron sandal satin scarf school seagull shovel sierra skate sketch sphinx spinach spiral spruce squid
    stable sunset swallow syrup tadpole teapot temple tennis thimble thunder tomato tornado tractor tripod trumpet tulip
    tundra tweed unicorn valley vanilla vessel village violet volcano vortex voyage vulture waffle walnut whisper window
    wombat wool wreath yacht yodel yogurt zebra zenith zodiac
    """.split()  # noqa: SIM905
)
