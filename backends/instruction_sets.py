"""Which machine instructions are integer arithmetic, movement of bits or control: the lists the certificate judges by.

They are lists of what is allowed: an instruction that is on none of them, new, unknown or forgotten, is reported. Several have names of
floating point but move bits only (Intel SDM volume 2: "bitwise", "moves", "shuffles"; Arm ARM chapter C7: FMOV without conversion); LLVM
uses them for integer vectors where they are shorter, or stay in one execution domain. Nothing here rounds, compares or converts a float,
or raises a floating-point exception.
"""

from __future__ import annotations

import re
from functools import cache

# x86-64. General-purpose: moves, integer arithmetic, bits, conditions, stack. No string, port, system or x87 instruction.
_X86_CONDITION = "o|no|b|ae|e|ne|be|a|s|ns|p|np|l|ge|le|g"
_X86_GENERAL = f"""
    mov|movabs|movsx|movsxd|movzx|movbe|lea|xchg|push|pop|cmov(?:{_X86_CONDITION})|set(?:{_X86_CONDITION})|bswap|cbw|cwde|cdqe|cwd|cdq|cqo|leave|nop|endbr64
    |add|adc|adcx|adox|sub|sbb|inc|dec|neg|mul|mulx|imul|div|idiv|cmp|test|and|andn|or|xor|not|shl|sal|shr|sar|shld|shrd|rol|ror|rorx|sarx|shlx|shrx
    |bt|btc|btr|bts|bsf|bsr|bextr|blsi|blsr|blsmsk|bzhi|pdep|pext|lzcnt|tzcnt|popcnt|prefetch(?:nta|t0|t1|t2|w)|mfence|sfence|lfence
    |stc|clc|cmc|cld|lahf|sahf"""

# Vector: integer operations (p...), all of them spelled out by what follows the p.
_X86_INTEGER = """
    abs[bwdq]|ackss(?:wb|dw)|ackus(?:wb|dw)|add(?:s|us)?[bwdq]|alignr|and|andn|and[dq]|andn[dq]|avg[bw]|blend(?:w|d|vb|m[bwdq])|broadcast(?:[bwdq]|mb2q|mw2d)
    |cmp(?:eq|gt|lt|le|neq|nlt|nle|ord)?u?[bwdq]|compress[bwdq]|conflict[dq]|dp(?:bu|wu|ws|bs)(?:s|u)?ds?|erm(?:[bwdq]|[it]2[bwdq]|2[fi]128|ilp[sd]|p[sd]|[it]2p[sd])|expand[bwdq]
    |extr[bwdq]|gather[dq][dq]|scatter[dq][dq]|h?add(?:w|d|sw)|hsub(?:w|d|sw)|hminposuw|insr[bwdq]|lzcnt[dq]|madd52[lh]uq|maddubsw|maddwd|maskmov[dq]|max[su][bwdq]|min[su][bwdq]
    |mov(?:us|s)?(?:wb|db|dw|qb|qw|qd)|mov[sz]x(?:bw|bd|bq|wd|wq|dq)|movm2[bwdq]|mov[bwdq]2m|movmskb|mul(?:dq|udq|hrsw|huw|hw|lw|ld|lq|tishiftqb)|opcnt[bwdq]
    |or|or[dq]|rol[dq]|rolv[dq]|ror[dq]|rorv[dq]|sadbw|shuf(?:b|d|hw|lw|bitqmb)|shld[wdq]|shldv[wdq]|shrd[wdq]|shrdv[wdq]|sign[bwd]|sll(?:w|d|q|dq)|sllv[wdq]|sra[wdq]|srav[wdq]
    |srl(?:w|d|q|dq)|srlv[wdq]|sub(?:s|us)?[bwdq]|ternlog[dq]|test|testn?m[bwdq]|unpck[lh](?:bw|wd|dq|qdq)|xor|xor[dq]"""

# Vector: movement and bitwise logic. The suffixes ps, pd, ss, sd name a domain, not arithmetic.
_X86_MOVES = """
    mov(?:d|q|w|dqa|dqu|ntdq|ntdqa|dqa32|dqa64|dqu8|dqu16|dqu32|dqu64|aps|apd|ups|upd|ss|sd|hps|hpd|lps|lpd|hlps|lhps|ddup|shdup|sldup|ntps|ntpd|mskps|mskpd)|lddqu
    |and(?:n)?p[sd]|x?orp[sd]|shufp[sd]|unpck[lh]p[sd]|blendv?p[sd]|blendmp[sd]|insertps|extractps|broadcast(?:s[sd]|[fi]128|[fi]32x[248]|[fi]64x[24])
    |(?:insert|extract)(?:[fi]128|[fi]32x[48]|[fi]64x[24])|shuf[fi](?:32x4|64x2)|align[dq]|maskmovp[sd]|compressp[sd]|expandp[sd]|gather[dq]p[sd]|scatter[dq]p[sd]
    |zeroupper|zeroall|db?psadbw|mpsadbw|testp[sd]|gf2p8(?:affineqb|affineinvqb|mulb)"""
_X86_MASKS = "k(?:mov|and|andn|or|xor|xnor|not|add|ortest|test|shiftl|shiftr)[bwdq]|kunpck(?:bw|wd|dq)"


def _pattern(*alternatives: str) -> re.Pattern[str]:
    return re.compile("(?:" + "|".join(re.sub(r"\s+", "", a) for a in alternatives) + ")")


_X86 = _pattern(_X86_GENERAL, f"v?p(?:{_X86_INTEGER})", f"v?(?:{_X86_MOVES})", _X86_MASKS)

# AArch64. General-purpose and memory; exclusive or atomic accesses, system registers and calls to a supervisor are not here.
_ARM_GENERAL = """
    mov|movz|movn|movk|mvn|adr|adrp|add|adds|sub|subs|adc|adcs|sbc|sbcs|neg|negs|ngc|cmp|cmn|tst|ccmp|ccmn|mul|mneg|madd|msub|smaddl|smsubl|umaddl|umsubl
    |smull|umull|smnegl|umnegl|smulh|umulh|sdiv|udiv|and|ands|bic|bics|orr|orn|eor|eon|lsl|lsr|asr|ror|lslv|lsrv|asrv|rorv|extr|bfm|sbfm|ubfm|bfi|bfxil|bfc|sbfiz|sbfx|ubfiz|ubfx
    |sxtb|sxth|sxtw|uxtb|uxth|uxtw|cls|clz|rbit|rev|rev16|rev32|rev64|csel|csinc|csinv|csneg|cset|csetm|cinc|cinv|cneg|nop|hint|bti|prfm|prfum
    |ldr|ldrb|ldrh|ldrsb|ldrsh|ldrsw|ldur|ldurb|ldurh|ldursb|ldursh|ldursw|ldp|ldpsw|ldnp|str|strb|strh|stur|sturb|sturh|stp|stnp|paciasp|autiasp|pacibsp|autibsp|xpaclri|dmb"""
_ARM_VECTOR = """
    ld[1-4]r?|st[1-4]|dup|ins|movi|mvni|umov|smov|ext|tbl|tbx|zip[12]|uzp[12]|trn[12]|bif|bit|bsl|cnt|not|xtn2?|fmov
    |abs|addv|addp|addhn2?|raddhn2?|subhn2?|rsubhn2?|[su]addl2?|[su]addw2?|[su]addlp|[su]addlv|[su]adalp|[su]subl2?|[su]subw2?|[su]hadd|[su]rhadd|[su]hsub|[su]abal2?|[su]abdl2?|[su]aba|[su]abd
    |[su]max|[su]maxp|[su]maxv|[su]min|[su]minp|[su]minv|cmeq|cmge|cmgt|cmle|cmlt|cmhi|cmhs|cmtst|mla|mls|[su]mlal2?|[su]mlsl2?|[su]mull2?|pmul|pmull2?
    |[su]qadd|[su]qsub|suqadd|usqadd|sqabs|sqneg|sqdmulh|sqrdmulh|sqrdmlah|sqrdmlsh|sqdmull2?|sqdmlal2?|sqdmlsl2?|[su]qxtn2?|sqxtun2?
    |[su]shl|[su]rshl|[su]qshl|[su]qrshl|sqshlu|[su]shll2?|shll2?|[su]xtl2?|[su]shr|[su]rshr|[su]sra|[su]rsra|shl|sli|sri|shrn2?|rshrn2?|[su]qshrn2?|[su]qrshrn2?|sqshrun2?|sqrshrun2?
    |[su]dot|usdot|sudot|[su]mmla|usmmla"""
_ARM = _pattern(_ARM_GENERAL, _ARM_VECTOR)


@cache
def is_integer(arch: str, mnemonic: str) -> bool:
    """Whether a mnemonic, branches and returns aside, is on the lists of `arch`."""
    return {"x86_64": _X86, "aarch64": _ARM}[arch].fullmatch(mnemonic) is not None
