"""Terms of captions: sides, findings, units.

Written for captions of the validation split of ROCOv2. Patterns match complete words in any case, without capturing
groups. In each table the first pattern that matches at a position is used, so compounds come before their parts.
"""

# names of studies that contain the name of another modality, such as "CT angiography": {pattern: replacement}
STUDIES = {
    r"\b(ct|mr|(?:computed|computeri[sz]ed|magnetic)[ -](?:tomograph\w+|resonance))((?: \(\w+\))?(?: \w+){0,2})[ -]"
    r"(?:angio|veno|arterio)gra\w+": r"\1\2",
    r"\bangiographic (?=ct|mr|computed|magnetic)": "",
    r"\bx-?\s?ray (?=computed)": "",
    r"\bpositron[ -]emission tomogra\w+(?!.{0,4}comput)": "PET",
    r"\bct ?[/-] ?pet\b": "PET/CT",
    r"\bctpa\b": "CT",
    r"\boptical coherence tomogra\w+": "",
    r"\borthopantomogra\w+": "orthopantomo",
    r"\b(?:axial|coronal|sagittal) t[12]\b|"
    r"\bt[12](?= (?:\w+-)?(?:image|sequence|signal|hyperint|hypoint|contrast|fat|tse))": "MRI",
    r"\b(?:barium|gastrografin) (?:swallow|enema|meal|stud)|\bgi series|"
    r"\b(?:chest|abdominal|bone age) films?\b": "X-ray",
    r"\bcephalo(?=ha?ematom|pelvi|caud)": "",
}

_SIDE = r"(?:left|right)"
_CHAMBER = (
    r"atri\w+|ventric\w+|heart|auric\w+|coronary|anterior descending|posterior descending|circumflex|bundle|"
    r"main(?! ?-?(?:stem)? ?bronch| pulmonary)|marginal|sinus of valsalva|gastric|gastro\w+|colic"
)
# "left" and "right" that are not the side of a finding, by reason
NO_SIDE = {
    "chambers and arteries of the heart, and unpaired vessels: names": (
        rf"{_SIDE}(?:[ ,/-]*(?:and|or|&) {_SIDE})?[ -](?:{_CHAMBER})"
    ),
    "the legend of a shunt or of letters": rf"{_SIDE}[ -]to[ -]{_SIDE}|\b[LR]\s?[:=,]\s?{_SIDE}",
    "views": (
        rf"{_SIDE}[ -](?:anterior|posterior)[ -]oblique|{_SIDE} (?:lateral )?(?:decubitus|recumben\w+)|"
        rf"{_SIDE} lateral (?:view|projection|position|radiogra\w+|x-?ray)"
    ),
    "positions in the image": (
        rf"{_SIDE}(?:[ -](?:hand|side|sided|most|upper|lower|top|bottom|corner))* "
        r"(?:of|in) (?:the|this) (?:image|picture|figure|screen|photo\w*)|"
        rf"(?:top|bottom)[ -]{_SIDE}|{_SIDE} (?:\w+ )?(?:panel|images?|picture|figure|column|row|inset|arrow\w*)"
    ),
    "the verb": (
        r"(?:is|was|are|were|be|been|being|has|have|had) left(?!-| ?side)|"
        r"left (?:in place|in situ|open|untreated|unrepaired|alone|behind|intact|untouched|unchanged|blank|as)"
    ),
    "the adverb": r"right (?:angles?|angled|away|after|before|above|below|at|next|beside|behind)|right-angled?",
    "a catheter": rf"judkins {_SIDE}",
}
_PAIR = (
    r"lungs?|kidneys?|sides?|breasts?|ovar\w+|hips?|knees?|eyes?|orbits?|globes?|legs?|hands?|feet|ankles?|wrists?|"
    r"elbows?|shoulders?|femurs?|femora\w*|tibia\w*|hemispher\w+|lobes|adrenal\w*|ureters?|testes|testic\w+|hemi\w+|"
    r"thalam\w+|frontal|parietal|temporal|occipital|thighs?|iliac|renal|pleura\w*|hila\w?|hilum|maxillary|carotid\w*|"
    r"apices|bases|sacroiliac|SI|lower|upper|mid|middle|groins|arms|forearms|condyles|axilla\w*|parotid\w*|adnexa\w*|"
    r"hippocamp\w+"
)
SIDES = {
    "both": (
        rf"bilateral\w*|B/L\b|bibas\w+|biapical\w*|bihilar|both (?!(?:the )?\w+(?<!s)(?<!feet) and )(?:the |of the )?"
        rf"(?:{_PAIR})\b|\bR(?:t|ight)?\s?[<>]\s?L(?:t|eft)?\b|\bL(?:t|eft)?\s?[<>]\s?R(?:t|ight)?\b"
    ),
    "left": r"left(?:sided|wards?)?\b|(?-i:Lt|LUL|LLL|LUQ|LLQ|LIF)\b",
    "right": r"right(?:sided|wards?)?\b|(?-i:Rt|RUL|RML|RLL|RUQ|RLQ|RIF)\b(?!-PCR)",
}

FINDINGS = {
    "mass effect": r"mass effect",
    "midline shift": r"(?:midline|mid-line) (?:shift|deviation)\w*|shift of the midline",
    "filling defect": r"filling defects?",
    "foreign body": r"foreign bod(?:y|ies)",
    "free air": (
        r"free (?:intraperitoneal |subdiaphragmatic |abdominal |intra-abdominal )?(?:air|gas)\b|pneumoperitone\w+|"
        r"air under (?:the )?(?:\w+ )?(?:hemi-?)?diaphragm"
    ),
    "ascites": r"ascit\w+|free (?:\w+ )?fluid|peritoneal fluid",
    "collection": r"(?<!data )collections?",
    "ground glass": r"ground[ -]?glass(?:[ -](?:opaci\w+|attenuation|density|densities|changes?))?|GGOs?\b",
    "cardiomegaly": (
        r"cardiomegal\w+|enlarged (?:cardiac|heart)(?: silhouette| shadow)?|(?:heart|cardiac) enlargement|"
        r"enlargement of the (?:heart|cardiac \w+)|heart (?:is|was|appears) enlarged"
    ),
    "lymphadenopathy": (
        r"lymph ?adenopath\w*|adenopath\w*|adenomegal\w+|(?:enlarged|enlargement of)(?: \w+){0,3} (?:lymph )?nodes?"
    ),
    "pneumothorax": r"(?:hydro|hemo|haemo)?pneumothora\w+",
    "pneumomediastinum": r"pneumomediastin\w+",
    "effusion": r"effusions?|hydrothora\w+|ha?emothora\w+",
    "consolidation": r"consolidat\w+",
    "infiltrate": r"infiltrates?\b|infiltrations?\b",
    "opacity": r"opacit\w+|opacifications?|opacified|(?:patchy |high[ -]density |lung )shadow\w*",
    "atelectasis": r"atelecta\w+",
    "edema": r"(?:o?edema\w*|o?edematous)",
    "pneumonia": r"(?:broncho)?pneumonia\w*",
    "emphysema": r"emphysem\w+",
    "fibrosis": r"fibro(?:sis|tic)\b",
    "bronchiectasis": r"bronchiecta\w+",
    "cavity": (  # only as a disease: not "nasal cavity" or "the cavity of the uterus"
        r"cavitat\w+|cavitary|cavit(?:y|ies) (?:in|within|of) (?:both |the )?(?:right |left )?"
        r"(?:\w+ )?(?:lungs?|lobes?)|(?:(?<=\ba )|(?<=\bno )|(?<=\blarge )|(?<=\bsmall )|(?<=\bpulmonary )|"
        r"(?<=\blung )|(?<=\bmultiple )|(?<=\bsingle )|(?<=\bcystic ))cavit(?:y|ies)"
    ),
    "fracture": r"fractur\w+|broken",
    "dislocation": r"dislocat\w+|sublux\w+|luxat\w+",
    "hematoma": r"(?:cephalo)?ha?ematomas?",
    "hemorrhage": r"(?:micro)?ha?emorrhag\w+|bleed\w*",
    "infarct": r"(?<!thrombolysis in myocardial )infarct\w*|ischa?emi[ac]\w*",
    "hydrocephalus": r"hydroceph\w+|ventriculomegal\w+",
    "pseudoaneurysm": r"pseudo-?aneurysm\w*",
    "aneurysm": r"aneurysm\w*",
    "dissection": r"dissect(?:ion|ing|ed)\w*|intimal flap",
    "thrombus": r"thromb(?:us|i|os[ie]s|osed|otic)\b|clots?\b",
    "embolism": r"(?:thrombo)?embol(?:ism|us|i|ic)\b",
    "stenosis": r"(?:re-?)?steno(?:s[ie]s|tic|sed)|narrow(?:ing|ed)|strictur\w+|coarctation",
    "occlusion": r"occlu(?:sion(?! balloon)|ded|sive)\w*",
    "dilatation": r"dilat(?:at)?(?:ion|ed|ions)\b|ectasia|ectatic|distend\w+|distens?ti?on\w*|distention",
    "calcification": r"(?:micro)?calcif(?:ication|ied|ic)\w*",
    "stone": (
        r"(?:gall|kidney |renal |ureter\w* |bladder )?stones?\b|calcul(?:us|i)\b|(?:chole|nephro|uro|sialo|"
        r"choledocho)lith\w*"
    ),
    "abscess": r"abscess\w*|empyema\w*",
    "hernia": r"herniat\w+|hernias?\b|herniae",
    "volvulus": r"volvulus",
    "intussusception": r"intussuscept\w+",
    "obstruction": r"obstruct(?:ion|ed|ing|ive)\w*",
    "rupture": r"ruptur\w+|perforat\w+|lacerat\w+",
    "fistula": r"fistul\w+",
    "leak": r"leak\w*|extravasat\w+",
    "diverticulum": r"divertic\w+",
    "polyp": r"polyp(?:s|oid|osis)?\b",
    "varices": r"varic(?:es|ose|osit\w+)|varix",
    "hydronephrosis": r"hydro(?:uretero)?nephro\w+",
    "splenomegaly": r"(?:hepato)?splenomegal\w+|enlarged spleen|spleen (?:is|was|appears) enlarged",
    "hepatomegaly": r"hepatomegal\w+|enlarged liver|liver (?:is|was|appears) enlarged",
    "metastasis": r"metasta\w+",
    "cancer": (
        r"(?:adeno|chorio)?carcinom\w+|cancers?\b|cancerous|malignan\w+|lymphoma\w*|"
        r"(?=\w*oma)\w*(?:blast|sarc)oma\w*|melanoma\w*|myeloma\w*"
    ),
    "mass": (
        r"mass(?:es)?\b|tumou?r(?:s|al|ous)?\b|neoplas\w+|"
        r"(?=\w*oma)\w*(?:schwann|mening|pharyng|aden|terat|lip|my|myx|fibr|neur|gl|thym|ang|cyt|chord)i?oma(?:s|ta)?\b|"
        r"fibroids?\b"
    ),
    "nodule": r"(?:micro)?nodul\w+",
    "cyst": r"cyst(?:s|ic)?\b|pseudocysts?",
    "lesion": r"(?:space[ -]occupying )?lesions?\b|space[ -]occupying",
    "thickening": r"thicken\w+|thick[ -]wall(?:ed|s)?",
    "enhancement": r"(?<!contrast[ -])(?<!contrast media )(?<!post[ -])(?:hyper-?)?enhanc(?:ement|ing)\b",
    "atrophy": r"atroph\w+",
    "erosion": r"ero(?:sion|ded|sive)\w*|osteoly\w+|lytic",
    "necrosis": r"necro(?:sis|tic)\w*",
    "swelling": r"swell\w+|swollen",
    "inflammation": r"inflam\w+",
    "abnormality": r"abnormalit\w+",
}

# {pattern: (base unit, factor)}; the exponent distinguishes lengths, areas and volumes
UNITS = {
    r"(?:mm|millimet(?:er|re)s?)": ("mm", 1),
    r"(?:cms?|centimet(?:er|re)s?)": ("mm", 10),
    r"(?:[µμ]m|micromet(?:er|re)s?)": ("mm", 0.001),
    r"(?:mm ?[2²]|sq(?:uare|\.)? ?(?:mm|millimet\w+))": ("mm2", 1),
    r"(?:cm ?[2²]|sq(?:uare|\.)? ?(?:cm|centimet\w+))": ("mm2", 100),
    r"(?:mm ?[3³])": ("mL", 0.001),
    r"(?:cm ?[3³]|ml|cc|millilit(?:er|re)s?|cubic (?:cm|centimet\w+))": ("mL", 1),
    r"(?:l|lit(?:er|re)s?)": ("mL", 1000),
    r"(?:hu|hounsfield units?)": ("HU", 1),
    r"(?:mm ?hg)": ("mmHg", 1),
    r"(?:%|percent|per cent)": ("%", 1),
    r"(?:° ?(?! ?c)|degrees?)": ("degrees", 1),
    r"(?:gy|gray)": ("Gy", 1),
    r"(?:kg|kilograms?)": ("kg", 1),
    r"(?:mhz)": ("MHz", 1),
    r"(?:fr|french)": ("Fr", 1),
    r"(?:t|tesla)": ("T", 1),
    r"(?:m/s|m/sec)": ("m/s", 1),
    r"(?:cm/s|cm/sec)": ("m/s", 0.01),
    r"(?:mins?|minutes?)": ("hours", 1 / 60),
    r"(?:hrs?|hours?|h)": ("hours", 1),
    r"(?:days?)": ("days", 1),
    r"(?:weeks?|wks?)": ("days", 7),
    r"(?:months?|mos)": ("months", 1),
    r"(?:years?|yrs?|yo|y/o)": ("months", 12),
}
SPELLED = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
