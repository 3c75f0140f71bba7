"""DCMTK's flags by tool, so that one we do not take is refused by name; the letters of `-x?`."""

from __future__ import annotations

from typing import NamedTuple

__all__ = [
    "SYNTAX_LETTERS",
    "TOOL_FLAGS",
    "SyntaxLetter",
    "accepted_syntaxes",
    "instead_of",
    "preferred_syntaxes",
]

_GENERAL = """
-h --help --version --arguments -q --quiet -v --verbose -d --debug -ll --log-level -lc --log-config
"""

_TLS = """
-tls --disable-tls +tls --enable-tls +tla --anonymous-tls +ps --std-passwd +pw --use-passwd
-pw --null-passwd -pem --pem-keys -der --der-keys +cf --add-cert-file +cd --add-cert-dir
+crl --add-crl-file +crv --enable-crl-vfy +cra --enable-crl-all +pg --profile-8996
+pm --profile-8996-mod +py --profile-bcp195-nd +px --profile-bcp195 +pz --profile-bcp195-ex
+pb --profile-basic +pa --profile-aes +pn --profile-null +cc --list-ciphers +cs --cipher
+dp --dhparam +rs --seed +ws --write-seed +wf --write-seed-file -rc --require-peer-cert
-vc --verify-peer-cert -ic --ignore-peer-cert --request-sni --expect-sni --no-sni
"""

_NETWORK = """
-aet --aetitle -aec --call -to --timeout -ts --socket-timeout -ta --acse-timeout
-td --dimse-timeout -pdu --max-pdu --repeat --abort -i4 --ipv4 -i6 --ipv6 -i0 --ip-auto
"""

_MODELS = "-P --patient -S --study -O --psonly"

_OUTPUT_ENCODING = """
+F --write-file -F --write-dataset +t= --write-xfer-same +te --write-xfer-little
+tb --write-xfer-big +ti --write-xfer-implicit +td --write-xfer-deflated +u --enable-new-vr
-u --disable-new-vr +g= --group-length-recalc +g --group-length-create -g --group-length-remove
+e --length-explicit -e --length-undefined -p --padding-off +p --padding-create -uc --retain-un
+uc --convert-un +cl --compression-level
"""


class SyntaxLetter(NamedTuple):
    """One letter of `-x?` and `+x?`: DCMTK's long name without its verb, the syntaxes in order."""

    long: str
    uids: tuple[str, ...]


_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_BIG = "1.2.840.10008.1.2.2"
_JPEG = "1.2.840.10008.1.2.4."

SYNTAX_LETTERS: dict[str, SyntaxLetter] = {
    "=": SyntaxLetter(long="uncompr", uids=(_EXPLICIT, _BIG, _IMPLICIT)),
    "e": SyntaxLetter(long="little", uids=(_EXPLICIT, _BIG, _IMPLICIT)),
    "b": SyntaxLetter(long="big", uids=(_BIG, _EXPLICIT, _IMPLICIT)),
    "i": SyntaxLetter(long="implicit", uids=(_IMPLICIT,)),
    "d": SyntaxLetter(long="deflated", uids=("1.2.840.10008.1.2.1.99",)),
    "s": SyntaxLetter(long="lossless", uids=(_JPEG + "70",)),
    "y": SyntaxLetter(long="jpeg8", uids=(_JPEG + "50",)),
    "x": SyntaxLetter(long="jpeg12", uids=(_JPEG + "51",)),
    "v": SyntaxLetter(long="j2k-lossless", uids=(_JPEG + "90",)),
    "w": SyntaxLetter(long="j2k-lossy", uids=(_JPEG + "91",)),
    "t": SyntaxLetter(long="jls-lossless", uids=(_JPEG + "80",)),
    "u": SyntaxLetter(long="jls-lossy", uids=(_JPEG + "81",)),
    "m": SyntaxLetter(long="mpeg2", uids=(_JPEG + "100",)),
    "h": SyntaxLetter(long="mpeg2-high", uids=(_JPEG + "101",)),
    "n": SyntaxLetter(long="mpeg4", uids=(_JPEG + "102",)),
    "l": SyntaxLetter(long="mpeg4-bd", uids=(_JPEG + "103",)),
    "2": SyntaxLetter(long="mpeg4-2-2d", uids=(_JPEG + "104",)),
    "3": SyntaxLetter(long="mpeg4-2-3d", uids=(_JPEG + "105",)),
    "o": SyntaxLetter(long="mpeg4-2-st", uids=(_JPEG + "106",)),
    "4": SyntaxLetter(long="hevc", uids=(_JPEG + "107",)),
    "5": SyntaxLetter(long="hevc10", uids=(_JPEG + "108",)),
    "r": SyntaxLetter(long="rle", uids=("1.2.840.10008.1.2.5",)),
}


def _letters(sign: str, verb: str, letters: str) -> str:
    names = []
    for letter in letters:
        long = SYNTAX_LETTERS[letter].long
        names += [
            f"{sign}x{letter}",
            "--implicit" if (sign, letter) == ("+", "i") else f"--{verb}-{long}",
        ]
    return " ".join(names)


_ALL = "".join(SYNTAX_LETTERS)
_PROPOSE_QUERY = _letters("-", "propose", "=ebdi")
_PROPOSE_ALL = _letters("-", "propose", _ALL)
_PREFER_ALL = _letters("+", "prefer", _ALL)

_FLAGS = {
    "echoscu": f"""{_GENERAL} {_NETWORK} {_TLS} -pts --propose-ts -ppc --propose-pc
        +vc --verify-cert +rc --is-root-cert""",
    "findscu": f"""{_GENERAL} {_NETWORK} {_TLS} {_MODELS} {_PROPOSE_QUERY} -k --key -W --worklist
        --cancel +u --enable-new-vr -u --disable-new-vr +cl --compression-level
        -od --output-directory +dc --enable-correction -dc --disable-correction
        +sr --show-responses -sr --hide-responses -X --extract -Xx --extract-xml
        -Xs --extract-xml-single -Xlo --limit-output""",
    "getscu": f"""{_GENERAL} {_NETWORK} {_TLS} {_MODELS} {_PROPOSE_QUERY} {_PREFER_ALL}
        +v --verbose-pc -k --key -od --output-directory -B --normal +B --bit-preserving --ignore""",
    "movescu": f"""{_GENERAL} {_NETWORK} {_TLS} {_MODELS} {_PROPOSE_QUERY} {_PREFER_ALL}
        {_OUTPUT_ENCODING} +v --verbose-pc -k --key -aem --move +xa --accept-all -ac --access-full
        +ac --access-control --no-port +P --port -pi --pending-ignore -pr --pending-read
        -dhl --disable-host-lookup --ignore --cancel -up --uid-padding -od --output-directory
        -B --normal +B --bit-preserving""",
    "storescu": f"""{_GENERAL} {_NETWORK} {_TLS} {_PROPOSE_ALL} +v --verbose-pc +f --read-file
        +fo --read-file-only -f --read-dataset +sd --scan-directories +sp --scan-pattern
        -r --no-recurse +r --recurse -rn --no-rename +rn --rename -xf --config-file -R --required
        +C --combine +u --enable-new-vr -u --disable-new-vr +cl --compression-level -usr --user
        -pwd --password -epw --empty-password -kt --kerberos --saml --jwt -rsp --pos-response
        --max-send-pdu -nh --no-halt -up --uid-padding +II --invent-instance +IR --invent-series
        +IS --invent-study +IP --invent-patient""",
    "storescp": f"""{_GENERAL} {_NETWORK} {_TLS} {_PREFER_ALL} {_OUTPUT_ENCODING} +v --verbose-pc
        --single-process --fork --max-associations -xf --config-file +xa --accept-all
        -ac --access-full +ac --access-control -id --inetd -dhl --disable-host-lookup --refuse
        --reject --ignore --sleep-after --sleep-during --abort-after --abort-during
        -pm --promiscuous -up --uid-padding -od --output-directory -B --normal
        +B --bit-preserving -ss --sort-conc-studies -su --sort-on-study-uid
        -sp --sort-on-patientname -uf --default-filenames +uf --unique-filenames
        -tn --timenames -fe --filename-extension -xcr --exec-on-reception -xcs --exec-on-eostudy
        -rns --rename-on-eostudy -tos --eostudy-timeout -xs --exec-sync""",
}

TOOL_FLAGS: dict[str, frozenset[str]] = {
    tool: frozenset(text.split()) for tool, text in _FLAGS.items()
}


# What to do instead of a flag that is refused.
_INSTEAD = {
    flag: text
    for text, flags in (
        (
            "it is so without it",
            """-tls --disable-tls +ps --std-passwd -pem --pem-keys -r --no-recurse -rn --no-rename
            +f --read-file -ac --access-full -uf --default-filenames +F --write-file
            -pi --pending-ignore -dc --disable-correction -dhl --disable-host-lookup
            +u --enable-new-vr""",
        ),
        (
            "what is received is written as it came",
            """-F --write-dataset +t= --write-xfer-same +te --write-xfer-little +tb --write-xfer-big
            +ti --write-xfer-implicit +td --write-xfer-deflated +g= --group-length-recalc
            +g --group-length-create -g --group-length-remove +e --length-explicit
            -e --length-undefined -p --padding-off +p --padding-create -uc --retain-un
            +uc --convert-un""",
        ),
        (
            "each file is named by its SOP Instance UID, in one folder",
            """-ss --sort-conc-studies -su --sort-on-study-uid -sp --sort-on-patientname
            -tn --timenames +uf --unique-filenames -fe --filename-extension
            -rns --rename-on-eostudy -tos --eostudy-timeout""",
        ),
        (
            "no command is run",
            "-xcr --exec-on-reception -xcs --exec-on-eostudy -xs --exec-sync",
        ),
        (
            "dcmhaul synth writes instances with new UIDs",
            """+II --invent-instance +IR --invent-series +IS --invent-study
            +IP --invent-patient""",
        ),
        ("-ll, -v, -d and -q say how much is told", "-lc --log-config"),
        ("many associations are served at once without it", "--fork"),
        ("--max-associations 1 serves one after another", "--single-process"),
        ("the contexts follow from what there is", "-xf --config-file"),
        ("each transfer syntax has a context of its own", "+C --combine"),
        ("files without meta are recognised without it", "-f --read-dataset"),
        ("--json tells what became of each file", "+rn --rename"),
        ("let the shell expand the pattern", "+sp --scan-pattern"),
        ("-X writes DICOM files, --json JSON", "-Xx --extract-xml -Xs --extract-xml-single"),
        ("-d shows each response", "+sr --show-responses"),
        ("only -d shows the responses", "-sr --hide-responses"),
        ("--cancel N ends the query after N matches", "-Xlo --limit-output"),
        ("--allow AET[@HOST] says who may call", "+ac --access-control"),
        ("-d says what goes out", "--arguments"),
        ("queries go uncompressed", "-xd --propose-deflated"),
        (
            "keys are PEM files without a password",
            "+pw --use-passwd -pw --null-passwd -der --der-keys",
        ),
        ("+cf, as often as needed, names the files", "+cd --add-cert-dir"),
        (
            "no revocation lists are read",
            "+crl --add-crl-file +crv --enable-crl-vfy +cra --enable-crl-all",
        ),
        (
            "TLS 1.2 and 1.3 are spoken, with ciphers that have forward secrecy",
            """+pg --profile-8996 +pm --profile-8996-mod +py --profile-bcp195-nd +px --profile-bcp195
            +pz --profile-bcp195-ex +pb --profile-basic +pa --profile-aes +pn --profile-null
            +cc --list-ciphers +cs --cipher +dp --dhparam""",
        ),
        ("the system's randomness is used", "+rs --seed +ws --write-seed +wf --write-seed-file"),
        ("-v tells what was negotiated", "-pts --propose-ts -ppc --propose-pc"),
    )
    for flag in flags.split()
}


def instead_of(flag: str) -> str:
    """What to do instead of a flag that is refused; empty where there is nothing to say."""
    return _INSTEAD.get(flag, "")


def preferred_syntaxes(letters: tuple[str, ...]) -> tuple[str, ...]:
    """The syntaxes to propose or prefer, in order. Of several letters the last holds, as in DCMTK."""
    return SYNTAX_LETTERS[letters[-1]].uids if letters else ()


def accepted_syntaxes(letters: tuple[str, ...]) -> tuple[str, ...]:
    """An acceptor's order of preference; () takes the requestor's. `+xi` accepts nothing else."""
    preferred = preferred_syntaxes(letters)
    if not letters or letters[-1] == "i":
        return preferred
    from dcmhaul.uids import TRANSFER_SYNTAXES

    return tuple(dict.fromkeys((*preferred, *TRANSFER_SYNTAXES)))
