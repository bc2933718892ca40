"""The certificate: holds for what is integer, and finds every rule that is broken."""

from __future__ import annotations

import json

import pytest
from toy_objects import ARCHITECTURES, TOY, compiled, toy

from qcompiler.backends.certificate import Certificate, certify
from qcompiler.backends.disassemble import UNKNOWN, disassemble
from qcompiler.backends.image import flatten
from qcompiler.backends.instruction_sets import is_integer


def findings(certificate: Certificate) -> str:
    return "; ".join(map(str, certificate.findings))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_integer_code_is_certified(arch: str) -> None:
    certificate = certify(toy(arch), "model_run", arch)
    assert certificate.ok, findings(certificate)
    assert set(certificate.functions) == {"model_run", "inner"}
    sizes = {f.name: f.size for f in flatten(toy(arch)).functions}
    assert certificate.code_bytes == sizes["model_run"] + sizes["inner"]
    assert certificate.instructions == sum(certificate.histogram.values()) > 10
    assert json.loads(json.dumps(certificate.as_dict()))["ok"] is True


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_floating_point_is_found_only_where_it_is_reachable(arch: str) -> None:
    assert certify(toy(arch, extra="float"), "model_run").ok
    certificate = certify(toy(arch), "model_run_f32")
    assert not certificate.ok
    assert {"x86_64": "mulps", "aarch64": "fcvtzs"}[arch] in findings(certificate)
    assert {f.function for f in certificate.findings} == {"model_run_f32"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_floating_point_in_a_callee_is_found(arch: str) -> None:
    """An fmul injected into the function that the entry calls."""
    mixed = "%a32 = sext i8 %a to i32\n  %f = sitofp i32 %a32 to float\n  %g = fmul float %f, %f\n  %h = fptosi float %g to i32\n"
    ir = TOY.replace("%a32 = sext i8 %a to i32", mixed).replace("mul i32 %a32", "mul i32 %h")
    certificate = certify(compiled(ir, arch), "model_run")
    assert "inner" in {f.function for f in certificate.findings}
    assert {"x86_64": "mulss", "aarch64": "fmul"}[arch] in findings(certificate)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "extra, words",
    [
        ("float", "is not on the list"),
        ("foreign call", "'puts' is not defined in the object"),
        ("foreign data", "'environ' is not defined in the object"),
        ("state", "is writable static data"),
        ("absolute", "absolute or unknown"),
        ("indirect", "goes to a computed address"),
        ("recursion", "is called recursively"),
        ("alloca", "moves the stack by an unknown amount"),
    ],
)
def test_each_broken_rule_is_found(arch: str, extra: str, words: str) -> None:
    certificate = certify(toy(arch, extra=extra), "broken")
    assert not certificate.ok
    assert words in findings(certificate)


def test_unknown_entries_and_architectures_are_findings() -> None:
    assert "is not an exported function" in findings(certify(toy("x86_64"), "nothing"))
    assert not certify(toy("x86_64"), "inner").ok
    assert not certify(toy("x86_64"), "model_run", "aarch64").ok


def with_code(arch: str, old: bytes, new: bytes) -> bytes:
    """The toy with the bytes of an instruction replaced."""
    obj = toy(arch)
    assert old in obj
    return obj.replace(old, new.ljust(len(old), b"\x90"), 1)


ARM_RETURN = bytes.fromhex("c0035fd6")


def x86_code(code: bytes) -> str:
    """What is found when `code` takes the place of the multiplication in the loop of `inner`, which is four bytes long."""
    obj = toy("x86_64")
    image = flatten(obj)
    inner = next(f for f in image.functions if f.name == "inner")
    body = image.data[inner.offset : inner.offset + inner.size]
    at = next(i.address - inner.offset for i in disassemble("x86_64", body, inner.offset) if i.mnemonic == "imul")
    changed = body[:at] + code + body[at + len(code) :]
    start = obj.index(body[at:])
    return findings(certify(obj[:start] + changed[at:] + obj[start + len(body) - at :], "model_run"))


@pytest.mark.parametrize(
    "code, words",
    [
        ("0f0b", "ud2"),
        ("0f05", "syscall"),
        ("cd80", "int 0x80"),
        ("d8c9", "fmul"),
        ("0f59c1", "mulps"),
        ("0f5ac1", "cvtps2pd"),
        ("06", "cannot be decoded"),
        ("ffe0", "goes to a computed address"),
        ("ff25", "goes to a computed address"),
        ("ebfd", "leads to no function and no instruction"),
        ("64a1", "uses memory of the thread"),
        ("54", "may grow the stack in a loop"),
        ("5c", "moves the stack by an unknown amount"),
    ],
)
def test_forbidden_x86_bytes_are_found(code: str, words: str) -> None:
    assert words in x86_code(bytes.fromhex(code))


def test_harmless_x86_bytes_are_not() -> None:
    assert x86_code(bytes.fromhex("0f1f4000")) == ""


@pytest.mark.parametrize(
    "word, words",
    [
        ("1f2003d5", "falls through"),  # nop
        ("200c226e", "falls through"),
        ("010000d4", "svc"),
        ("2020c0da", "cannot be decoded"),  # abs x0, x1 of CSSC
        ("00000000", "udf"),
        ("20001fd6", "br x1"),
        ("40005fd6", "ret x2"),
    ],
)
def test_forbidden_arm_words_are_found(word: str, words: str) -> None:
    """In place of the first return, that of `inner`."""
    assert words in findings(certify(with_code("aarch64", ARM_RETURN, bytes.fromhex(word)), "model_run"))


def test_the_stack_is_bounded_by_the_deepest_path() -> None:
    """An array of 1000 bytes in a callee, aligned to 64."""
    local = "entry:\n  %room = alloca [1000 x i8], align 64\n  store volatile i8 1, ptr %room\n"
    for arch in ARCHITECTURES:
        certificate = certify(compiled(TOY.replace("entry:\n", local, 1), arch), "model_run")
        assert certificate.ok, findings(certificate)
        assert 1000 <= certificate.stack_bytes <= 1400


# Instructions of the kernels and their neighbours, as Intel and Arm write them: bytes from LLVM's assembler.
VEX = {
    "c4e26d50d9": ("vpdpbusd", 5),
    "c4e26d505c9840": ("vpdpbusd", 7),
    "c4626952e9": ("vpdpwssd", 5),
    "c4e26f50d9": ("vpdpbssd", 5),
    "c4e26d501d44332211": ("vpdpbusd", 9),
    "c4e26d509c9844332211": ("vpdpbusd", 10),
    "c4e26d511c2544332211": ("vpdpbusds", 10),
    "62f26d4850d9": ("vpdpbusd", 6),
}


@pytest.mark.parametrize("code, expected", VEX.items(), ids=[f"{v[0]}-{k}" for k, v in VEX.items()])
def test_dot_products_are_decoded(code: str, expected: tuple[str, int]) -> None:
    """Followed by a return, which is found only if the length is right."""
    first, last = disassemble("x86_64", bytes.fromhex(code) + b"\xc3", 0)
    assert (first.mnemonic, first.size, last.mnemonic) == (*expected, "ret")
    assert is_integer("x86_64", first.mnemonic)


@pytest.mark.parametrize("code", ["62f56c4858d9", "62f26e4852d9", "62f26f4872d9", "c4e2ed50d9", "c4e26d54d9", "c4e26d50"])
def test_floating_point_that_does_not_decode_stays_unknown(code: str) -> None:
    """vaddph, vdpbf16ps, vcvtne2ps2bf16, VEX.W1, another opcode, a truncated one."""
    assert [i.mnemonic for i in disassemble("x86_64", bytes.fromhex(code), 0)] == [UNKNOWN]


FLOATS = {
    "x86_64": """
        addss addps vaddps vaddpd mulsd vmulps vfmadd231ps vfnmadd132sd subps divps sqrtss rsqrtps rcpps maxps minss vminps cmpps
        vcmpps comiss ucomisd cvtsi2ss cvttss2si vcvtps2dq cvtdq2ps vcvtph2ps roundps vrndscaleps vrangeps vreduceps vgetexpps
        vscalefps vfpclassps vdpbf16ps dpps haddps addsubps fadd fld fstp fmul fild ldmxcsr stmxcsr vfixupimmps vexp2ps vp4dpwssd
        v4fmaddps pfadd pi2fd vpfadd syscall sysenter int int3 in out hlt cpuid rdtsc rdrand xsave wrfsbase iretq ljmp lcall loop rep
        lock ud2 cli sti vcvtudq2ps
    """,
    "aarch64": """
        fadd fsub fmul fmla fmls fmadd fmsub fnmadd fdiv fsqrt fmax fmin fmaxnm fminnmv fabs fneg fcmp fccmp fcmeq fcmgt fcsel fcvt
        fcvtzs fcvtns fcvtau fcvtn scvtf ucvtf frinta frintx frecpe frsqrte fmlal bfdot bfmmla bfcvt fcadd fcmla svc hvc smc brk hlt
        msr mrs eret wfi blr br braa ldxr stxr cas ldadd fmulx faddp fabd fjcvtzs urecpe
    """,
}
INTEGERS = {
    "x86_64": """
        vpdpbusd vpmaddubsw vpmaddwd pmulhrsw vpmulhrsw vpackssdw vpacksswb packuswb vpaddd vpaddsw paddusb vpsubsb vpsrad vpsravd
        vpsravw vpsraq vpmovsxbw pmovzxbd vpmovsdb vpmovuswb vpermd vpermq vperm2i128 vpermt2b vpermi2d vpshufb pshufd vpunpcklbw
        vpabsb vpsignb vpmaxsb vpminsd vpternlogd vpcmpgtb vpcmpltub vpcmpeqd vpblendvb vpblendmb vpbroadcastd vmovdqu8 vmovdqa movaps
        movups vmovss xorps vandps vinserti128 vextracti64x4 kmovd kortestw kshiftrq vzeroupper vshufps unpcklpd vbroadcastss vpinsrb
        pextrw vptest vpgatherdd vpalignr palignr vpxor vpord vpandn lea mov movsxd imul sar cmovge setne shrx vmovd vmovq movhlps
        blendps insertps vpslldq vpsadbw vpmulld vpmuldq
    """,
    "aarch64": """
        sdot udot usdot smmla ummla smull smull2 smlal smlal2 sqrdmulh sqdmulh saddw sadalp srshl sshl sqxtn sqxtn2 sqxtun sqrshrn tbl
        tbx ld1 ld1r ld4 st1 ldp stp ldr str dup ins movi mvni mov eor orr and bic bsl ext zip1 uzp2 trn1 rev32 addv saddlv smax sminv
        umov smov fmov add madd csel ubfx sxtw adrp shl ushll sshll xtn mul mla cmgt cmeq prfm cinc
    """,
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_lists_hold_integers_and_no_floats(arch: str) -> None:
    assert [m for m in FLOATS[arch].split() if is_integer(arch, m)] == []
    assert [m for m in INTEGERS[arch].split() if not is_integer(arch, m)] == []
