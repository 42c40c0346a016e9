"""Terms of body regions, in the form of `medcap.metrics.clinical.lexicon`."""

_NOT_OF_BONE = "".join(f"(?<!{bone} )" for bone in ("femoral", "humeral", "radial", "metatarsal", "pancreatic"))
# values of `medcap.data.concepts.REGIONS`, and the neck; as there, a vertebra is spine only, a hip lower extremity
REGIONS = {
    "spine": (
        r"spin(?:e|al)(?! needle)|vertebra[el]?(?! arter)|(?:cervical|thoracic|dorsal|lumbar|sacral|lumbosacral) "
        r"(?:vertebra\w*|spin\w+|dis[ck]s?|cord|level|kyph\w+|lordo\w+|"
        r"scolio\w+)|lumb(?:ar|o\w+)|"
        r"inter(?:vertebral|body)|dis[ck] (?:herniat|protru|space|bulg|degener|prolaps)\w*|paraspin\w+|scolio\w+|"
        r"kypho\w+|myelo(?:gra|path)\w+|cauda equina|conus medullaris|sacrum|sacral|coccy\w+|erector spinae|"
        r"epidural (?:space|abscess)|(?-i:[CTL]\d{1,2} ?[-–/] ?[CTLS]?\d{1,2})\b|"
        r"(?-i:[CTL]\d{1,2}) (?:level|vertebra\w*|body|fracture)"
    ),
    "pelvis": (
        r"(?<!renal )pelvi[sc](?!alyc)\w*|(?:neo)?bladder(?<!gallbladder)|uter(?:us|ine|o\w+)|"
        r"endometri\w+|myometri\w+|ovar\w+|"
        r"adnexa\w*|prostat\w*|rect(?:um|al|o\w+)(?! abdominis| femoris)|perirectal|"
        r"vagin\w+|cervix|testi\w+|scrot\w+|penile|penis|urethr\w+|perine\w+|inguinal|groin|sacroili\w+|iliac|"
        r"ilium|ischi\w+|pubi[cs]|pubic|fallopian|gestational sac|transvaginal|perianal|anal|anus|hypogastric"
    ),
    "abdomen": (
        r"abdom\w+|abdomino\w*|liver|hepat\w+|portal|gall ?bladder|cholecyst\w+|choledoch\w+|cholangio\w+|bil(?:e|"
        r"iary)|"
        r"pancrea\w+|peripancrea\w+|spleen|splen(?!ium|ius)\w+|kidneys?|renal|nephr\w+|pararenal|"
        r"perinephric|hydronephro\w+|"
        r"adrenal\w*|ureter\w*|hydroureter\w*|(?:intra|peri)?gastric|stomach|gastro\w+|duoden\w+|"
        r"jejun\w+|ile(?:um|al|o\w+)|"
        r"bowel|sigmoid(?! sinus)|"
        r"intestin\w+|colon|colonic|caec\w+|cec(?:um|al)|append(?:ix|ic\w+)|inferior vena cava|"
        r"peritone\w+|ascit\w+|retroperitone\w+|mesent\w+|"
        r"oment\w+|mrcp|ercp|epigastri\w+|iliac fossa|psoas|celiac|coeliac|umbilic\w+|hypochondri\w+|"
        r"(?-i:[RL][UL]Q)\b|"
        r"porto\w+|transhepatic|perisplenic|perihepatic|subhepatic|intrahepatic"
    ),
    "chest": (
        r"chest|thora\w+|hemithora\w+|lungs?|intrathora\w+|pulmon\w+|pleur\w+|hydropneumo\w+|(?:pneumo)?mediastin\w+|"
        r"bronch\w+|lingula|"
        r"hemi-?diaphragm\w*|cardi(?:ac|o(?!-?tocogra)\w*)|heart|coronar(?:y|ies)(?! (?:ct|view|plane|section))|"
        r"pericardi\w*|myocardi\w*|endocardi\w*|atri(?:um|al|a)|(?:left|right) ventric\w+|"
        r"(?<!abdominal )aort(?!omes|ogra)\w+|"
        r"echocardio\w+|mitral|tricuspid|valv\w+|trache(?!ost)\w+|(?:o|e)?esoph\w+|ribs?\b|stern(?:um|al)|"
        r"sternoclavicular|hil(?:um|ar)|interlobar|apical (?:four|five|4|5|two)|parasternal|TTE|TEE|CXR|HRCT|"
        r"(?-i:[RL][UML]L)\b|subclavian|superior vena cava|septal defect|costophrenic|cardiomegal\w+|"
        r"airspace|retrosternal|intercostal|innominate|brachiocephalic|dextrocardia|diaphragmatic hernia\w*|"
        r"(?:upper|middle|lower) lobes?|ground[ -]?glass|covid\w*|pneumon\w+|pneumothora\w+|"
        r"pneumomediastin\w+|left anterior descending"
    ),
    "breast": r"breasts?|mammo\w+|mamma\w+|areola\w*|nipple",
    "neck": (
        rf"{_NOT_OF_BONE}(?<!head and )(?<!cm )(?<!mm )necks?(?! of)|thyroid\w*|goit\w+|parathyroid\w*|laryn\w+|"
        rf"pharyn\w+|parapharyn\w+|"
        rf"nasopharyn\w+|oropharyn\w+|"
        r"carotid\w*|vertebral arter(?:y|ies)|jugular|IJV|hyoid|vallecula|epiglott\w+|submandibular|"
        r"parotid|suprasternal|supraclavic\w+|vocal|"
        r"cervical (?:lymph|node|region|common|mass|esoph)\w*"
    ),
    "skull": (
        rf"{_NOT_OF_BONE}heads?(?! of)|brain\w*|skull|"
        r"crani(?!ally|ocaud|al (?:edge|part|aspect|end|portion|pole|migration))\w+|intracrani\w+|"
        r"cerebr\w+|cerebell\w+|intracerebral|"
        rf"subdural|"
        r"subarachnoid|pons|pontine|thalam\w+|pituitar\w+|sella\w*|suprasellar|hippocamp\w+|"
        r"basal ganglia|corpus callosum|white matter|periventric\w+|insular?\b|mening\w+|"
        r"(?:frontal|parietal|temporal|occipital)(?: and \w+)? (?:lobes?|cort\w+|bones?|horns?|region|subcort\w+|"
        r"sinus\w*)|"
        r"fronto\w+|temporo\w+|parieto\w+|(?:lateral|third|fourth|3rd|4th) ventric\w+|ventriculomegal\w+|hydroceph\w+|"
        r"orbit\w*|periorbital|periocular|ocular|eye|retina(?:l|e)?(?!\w)|retinopath\w+|"
        r"optic|globe|mastoid\w*|cochlea\w*|temporal bone|sinus(?:es|itis)|"
        r"maxill\w+|mandib\w+|zygom\w+|nasal|paranasal|intraoral|dental|denti\w+|tooth|teeth|molars?|premolar\w*|"
        r"incisor\w*|canine\w*|periapical|alveolar (?:bone|ridge|crest)|panoram\w+|orthopanto\w+|pantomo\w+|OPG|jaws?|"
        r"cephalo(?:gra|met)\w+|tmj|temporomandib\w+|condylar|facial|root canal|tongue|palat\w+|choroid plexus"
    ),
    "upper extremity": (
        r"upper (?:extremit|limb)\w*|shoulder\w*|humer(?:us|al|i)|elbow\w*|forearm\w*|radi(?:us|al (?:head|styl|"
        r"art)\w*)|"
        r"ulna\w*|wrist\w*|carp(?:us|al)\w*|metacarp\w+|scaph\w+|lunate|hands?(?![ -]?side)|finger\w*|thumb|clavic\w+|"
        r"scapul\w+|glenoid|glenohumeral|rotator cuff|supraspin\w+|biceps|brachial\w*|axilla\w*|median nerve|"
        r"acromio\w+|olecran\w+|arms?\b"
    ),
    "lower extremity": (
        r"lower (?:extremit|limb)\w*|hips?|femur|femor(?:al|o\w+)|acetabul\w+|knees?|tibi\w+|fibul\w+|patell\w+|"
        r"ankle\w*|"
        r"f(?:oot|eet)|forefoot|hindfoot|calcane\w+|tal(?:us|ar)|navicular|metatars\w+|tars(?:us|al)|toes?|hallu\w+|"
        r"menisc\w+|cruciate|ACL|PCL|achilles|plantar|thigh\w*|legs?|calf|poplite\w+|gluteal|trochanter\w*|quadriceps|"
        r"malleol\w+"
    ),
}
