"""`asynctask completion`: the script for each shell, printed or installed."""

import shutil
import subprocess

import pytest

from asynctask.cli.main import COMMANDS


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_knows_every_command(here, shell):
    code, out, err = here("completion", shell)
    assert (code, err) == (0, "")
    for path in COMMANDS:
        assert path[-1] in out
    assert "--older-than" in out


def test_bash_accepts_its_script(here):
    bash = shutil.which("bash")
    assert bash is not None
    script = here("completion", "bash").out
    assert subprocess.run([bash, "-n"], input=script, text=True, capture_output=True, timeout=20).stderr == ""


def test_bash_completes_a_command(here):
    script = here("completion", "bash").out
    ask = 'COMP_WORDS=(asynctask runs in); COMP_CWORD=2; COMP_LINE="asynctask runs in"; COMP_POINT=${#COMP_LINE}\n'
    ask += '"$(complete -p asynctask | sed -E "s/.*-F ([^ ]+).*/\\1/")"; echo "${COMPREPLY[@]}"'
    done = subprocess.run(["bash"], input=f"{script}\n{ask}\n", text=True, capture_output=True, timeout=20)
    assert done.stdout.split() == ["inspect"]


def test_it_is_installed_where_it_is_told_to(here, folder):
    code, out, err = here("completion", "bash", "--output", "here.bash")
    assert (code, out) == (0, "")
    assert str(folder / "here.bash") in err
    assert (folder / "here.bash").read_text() == here("completion", "bash").out.removesuffix("\n")


def test_it_is_installed_where_the_shell_looks(here, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert here("completion", "bash", "--install").code == 0
    assert (folder / ".local/share/bash-completion/completions/asynctask").exists()


def test_a_shell_that_nobody_knows_is_wrong_use(here):
    code, out, err = here("completion", "tcsh")
    assert (code, out) == (2, "")
    assert "tcsh" in err
