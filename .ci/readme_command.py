"""Print the README's first ("demo") or second ("test") command, so that what is checked is what is promised."""

import re
import sys
from pathlib import Path

blocks = re.findall(r"```bash\n(.*?)```", (Path(__file__).parent.parent / "README.md").read_text(), flags=re.DOTALL)
print(blocks[{"demo": 0, "test": 1}[sys.argv[1]]].strip())
