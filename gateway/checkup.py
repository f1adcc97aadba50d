"""`check`: is the installation sound.

Each thing that is looked at is a line; a fault tells what to do. What `serve` would refuse at its start is told in
the same words. The looking itself is in the files checkup_*.py, by what is looked at.
"""

from gateway.admin import Answer
from gateway.checkup_database import check_database
from gateway.checkup_installation import Installation
from gateway.checkup_settings import check_settings
from gateway.checkup_system import check_folder, check_process, check_program
from gateway.core.findings import summary


def check(installation: Installation) -> Answer:
    """Look at everything that can be looked at without a server."""
    findings = [
        *check_settings(installation),
        *check_program(),
        *check_process(installation.environment),
        check_folder(installation.database),
        *check_database(installation.database, installation.now_ms),
    ]
    return Answer(
        value=[{"ok": not finding.is_fault, "state": finding.state, "text": finding.text} for finding in findings],
        text="\n".join(map(str, findings)),
        talk=(summary(findings),),
        is_failure=any(finding.is_fault for finding in findings),
    )
