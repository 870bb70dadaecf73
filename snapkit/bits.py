"""Registers and their fields, declared once: a field *is* its mask.

`bit` and `bits` give an int whose value is the mask, with name, meaning and access mode attached, so that the code
which tests a register stays integer code (``value & Lsr.THRE``) and the declaration also feeds the JSON schema,
inspect's tree and the write rules. A `Register` subclass is never instantiated: a register's *value* is a plain int.

Declaring is checked when the module is imported: fields that overlap, leave the register or name an unknown access
mode, and a reset value too wide, raise InternalError.

Access modes, as the guest sees a field:

    rw    reads back what was written           w1c   writing one clears, writing zero keeps
    ro    writes are ignored                    w1s   writing one sets, writing zero keeps
    wo    taken as written; reads mean nothing  rc    writes are ignored, reading the register clears

Bits that no field covers are reserved: writes leave them alone.

Surprise: an IntFlag would say the same and costs about a microsecond per test of a bit, against some 20 ns for an int
subclass that adds no operators: arithmetic with one gives a plain int. A lone field is still a Field, which msgspec
will not encode: a State is given ``int(Lcr.DLAB)``, or anything computed.
"""

from typing import ClassVar, Final, Self

from snapkit.errors import InternalError

ACCESS: Final = ("rw", "ro", "wo", "w1c", "w1s", "rc")


class Field(int):
    """A field of a register: the int is its mask. Made by `bit` and `bits`, named by the class it stands in."""

    name: str
    msb: int
    lsb: int
    doc: str
    access: str

    def __new__(cls, msb: int, lsb: int, doc: str, access: str) -> Self:
        self = super().__new__(cls, ((1 << (msb + 1)) - 1) ^ ((1 << lsb) - 1) if msb >= lsb >= 0 else 0)
        self.name, self.msb, self.lsb, self.doc, self.access = "", msb, lsb, doc, access
        return self

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __copy__(self) -> Self:  # a constant; int's own way of copying would call __new__ with the value alone
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __repr__(self) -> str:
        where = f"{self.msb}" if self.msb == self.lsb else f"{self.msb}:{self.lsb}"
        return f"<{self.name or 'field'} [{where}] {self.access}>"

    def get(self, value: int) -> int:
        """Return this field of the register *value*, shifted down."""
        return (value & self) >> self.lsb

    def put(self, value: int) -> int:
        """Return *value* shifted into this field's place; what does not fit is cut off."""
        return (value << self.lsb) & self


def bit(n: int, doc: str, access: str = "rw") -> Field:
    """Declare a field of one bit, *n*."""
    return Field(n, n, doc, access)


def bits(msb: int, lsb: int, doc: str, access: str = "rw") -> Field:
    """Declare a field from bit *msb* down to bit *lsb*, both included."""
    return Field(msb, lsb, doc, access)


class Register:
    """Base of register declarations: ``class Lsr(Register, width=8, reset=0x60, ref="PC16550D, line status")``.

    *width* is in bits, *ref* names the document and the place in it.
    """

    width: ClassVar[int]
    reset: ClassVar[int]
    ref: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    """Lowest bit first."""
    defined: ClassVar[int]
    """Mask of every bit that some field covers."""
    writable: ClassVar[int]
    """Mask of the bits that take what is written."""
    w1c: ClassVar[int]
    w1s: ClassVar[int]
    read_clear: ClassVar[int]

    def __init_subclass__(cls, *, width: int, ref: str, reset: int = 0) -> None:
        super().__init_subclass__()
        fields = sorted(
            (value for value in vars(cls).values() if isinstance(value, Field)), key=lambda field: field.lsb
        )
        masks = dict.fromkeys(ACCESS, 0)
        defined = 0
        for field in fields:
            where = f"register {cls.__name__} field {field.name}"
            if not 0 <= field.lsb <= field.msb < width:
                raise InternalError(f"{where} is [{field.msb}:{field.lsb}], must lie in [{width - 1}:0]")
            if field.access not in masks:
                raise InternalError(f"{where} has access {field.access!r}, must be one of {', '.join(ACCESS)}")
            if defined & field:
                raise InternalError(f"{where} [{field.msb}:{field.lsb}] overlaps another field")
            defined |= field
            masks[field.access] |= field
        if not 0 <= reset < 1 << width:
            raise InternalError(f"register {cls.__name__} resets to {reset:#x}, must fit in {width} bits")
        cls.width, cls.reset, cls.ref, cls.fields, cls.defined = width, reset, ref, tuple(fields), defined
        cls.writable = masks["rw"] | masks["wo"]
        cls.w1c, cls.w1s, cls.read_clear = masks["w1c"], masks["w1s"], masks["rc"]

    @classmethod
    def merge(cls, old: int, new: int) -> int:
        """Return the register after a guest wrote *new* over *old*, each field by its access mode."""
        value = (old & ~cls.writable) | (new & cls.writable)
        return (value & ~(new & cls.w1c)) | (new & cls.w1s)

    @classmethod
    def after_read(cls, value: int) -> int:
        """Return what is left of *value* once the guest has read it."""
        return value & ~cls.read_clear

    @classmethod
    def decode(cls, value: int) -> list[tuple[str, int]]:
        """Return *value* as (field name, field value), lowest bit first; set bits that no field covers come last."""
        decoded = [(field.name, field.get(value)) for field in cls.fields]
        if value & ~cls.defined:
            decoded.append(("reserved", value & ~cls.defined))
        return decoded

    @classmethod
    def describe(cls) -> dict[str, object]:
        """Return the declaration as plain JSON data."""
        return {
            "name": cls.__name__,
            "width": cls.width,
            "ref": cls.ref,
            "fields": [
                {"name": field.name, "msb": field.msb, "lsb": field.lsb, "doc": field.doc, "access": field.access}
                for field in cls.fields
            ],
        }
