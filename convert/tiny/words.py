"""Words the conversations are made of; what is listed or copied is one token."""

# ruff: noqa: SIM905 (lists of phrases read better as text)
from __future__ import annotations

NOUNS = """
apple river stone house tree water fire light night day sun moon star sky cloud rain snow wind
sea lake hill road bridge garden flower grass leaf bird cat dog horse cow fish lion bear wolf
mouse rabbit duck bread milk salt rice cake pie orange banana table chair door window wall floor
roof room bed lamp clock book paper pen letter word page story song music voice sound color red
blue green black white brown gold silver iron steel glass wood plastic ring box bag cup plate
knife car bus train plane boat ship bike wheel engine motor phone radio camera screen key lock
card map ticket coin money bank shop market office school church hospital hotel station street
city town country forest field farm king queen doctor teacher student artist writer driver
friend mother father child baby boy girl man woman hand foot head eye ear nose mouth heart arm
leg finger hair hat coat shirt dress shoe game ball team player winner number circle square line
point corner edge north south east west spring summer winter hour minute second week month year
time dream idea plan question answer problem lesson test power energy speed force metal oil gas
coal sand earth world space planet rocket robot computer machine tool hammer wire rope chain
paint brush picture film video news report magic secret castle tower gate park party dance gift
laugh tear peace war shield arrow flag
""".split()

NAMES = """
Maria Anna John Peter Paul Emma Lucas David Sarah Laura Julia Thomas Robert James Mary Linda
Susan Karen Lisa Nancy Daniel Mark George Kevin Brian Edward Jason Ryan Jacob Eric Frank Scott
Sam Alice Bob Carol Tom Jack Henry Oscar Max Leo Ben Adam Simon Martin Victor Oliver Helen Grace
Ruby Kate Jane Amy Emily Anne Eva Sara Lucy Mike Steve Chris Alex Nick Andrew Michael William
Charles Joseph Richard
""".split()

CITIES = """Paris London Berlin Rome Madrid Tokyo Boston Chicago Dallas Denver Seattle Toronto Delhi
Mumbai Sydney Houston Miami Atlanta Phoenix Austin Detroit Amsterdam Barcelona Singapore Dubai
Oxford Manchester Liverpool""".split()

COLOURS = "red blue green yellow orange purple black white brown pink gray gold silver".split()
FOODS = "pizza rice bread cake fish apple banana pie milk orange".split()
PETS = "cat dog horse rabbit fish bird mouse duck lion cow".split()
ROOMS = "garden office hall garage room house school shop".split()
WEATHER = "sunny cloudy rain snow wind clear hot cold dry warm".split()
ADJECTIVES = "old new big small long short dark bright quiet young tall cold warm soft".split()
VERBS = "stood stayed slept waited lived moved played worked rested".split()
PLACES = "near behind under beside above inside outside".split()

UNKNOWN = "zzz"  # no vocabulary row is kept for its tokens: stands for every unknown word
