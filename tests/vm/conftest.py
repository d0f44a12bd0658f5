"""What is in inside/ runs in the guests only."""
import os

collect_ignore = [] if "SHARED_SOCKET_VM" in os.environ else ["inside"]
