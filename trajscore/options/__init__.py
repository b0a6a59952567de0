"""Options of commands, each declared once: `declaration` says how, `groups` holds what several commands share.

`named` reads NAME,KEY=VALUE, `values` JSON and pairs from a command line; `spelling` writes options as flags and says what a
preset is.

The command line, the keywords of the Python functions, recipes, manifests and the reference pages are made of these classes.
Whatever a command does stays outside, so that help and completion import nothing that takes time.
"""

from trajscore.options.declaration import USUAL as USUAL
from trajscore.options.declaration import Described as Described
from trajscore.options.declaration import Option as Option
from trajscore.options.declaration import Options as Options
from trajscore.options.declaration import UnknownOptionError as UnknownOptionError
from trajscore.options.declaration import argument as argument
from trajscore.options.declaration import describe as describe
from trajscore.options.declaration import keywords_of as keywords_of
from trajscore.options.declaration import option as option
from trajscore.options.declaration import options_in as options_in
from trajscore.options.named import Named as Named
from trajscore.options.named import Parameter as Parameter
from trajscore.options.named import named_with as named_with
from trajscore.options.named import parse_named as parse_named
from trajscore.options.named import settle as settle
from trajscore.options.spelling import Preset as Preset
from trajscore.options.spelling import as_flags as as_flags
from trajscore.options.spelling import flag as flag
