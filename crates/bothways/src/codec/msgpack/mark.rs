//! The first byte of a value says what it is. Source: the MessagePack specification, "Formats".

pub(super) const FIX_POS_LAST: u8 = 0x7f;
pub(super) const FIX_MAP: u8 = 0x80;
pub(super) const FIX_MAP_LAST: u8 = 0x8f;
pub(super) const FIX_ARRAY: u8 = 0x90;
pub(super) const FIX_ARRAY_LAST: u8 = 0x9f;
pub(super) const FIX_STR: u8 = 0xa0;
pub(super) const FIX_STR_LAST: u8 = 0xbf;
pub(super) const NIL: u8 = 0xc0;
/// Never used.
pub(super) const RESERVED: u8 = 0xc1;
pub(super) const FALSE: u8 = 0xc2;
pub(super) const TRUE: u8 = 0xc3;
pub(super) const BIN_8: u8 = 0xc4;
pub(super) const BIN_32: u8 = 0xc6;
pub(super) const EXT_8: u8 = 0xc7;
pub(super) const EXT_32: u8 = 0xc9;
pub(super) const F_32: u8 = 0xca;
pub(super) const F_64: u8 = 0xcb;
pub(super) const U_8: u8 = 0xcc;
pub(super) const U_16: u8 = 0xcd;
pub(super) const U_32: u8 = 0xce;
pub(super) const U_64: u8 = 0xcf;
pub(super) const I_8: u8 = 0xd0;
pub(super) const I_16: u8 = 0xd1;
pub(super) const I_32: u8 = 0xd2;
pub(super) const I_64: u8 = 0xd3;
pub(super) const FIX_EXT_1: u8 = 0xd4;
pub(super) const FIX_EXT_16: u8 = 0xd8;
pub(super) const STR_8: u8 = 0xd9;
pub(super) const STR_32: u8 = 0xdb;
pub(super) const ARRAY_16: u8 = 0xdc;
pub(super) const ARRAY_32: u8 = 0xdd;
pub(super) const MAP_16: u8 = 0xde;
pub(super) const MAP_32: u8 = 0xdf;
pub(super) const FIX_NEG: u8 = 0xe0;

pub(super) fn is_integer(marker: u8) -> bool {
    matches!(marker, (..=FIX_POS_LAST) | FIX_NEG..|U_8..=U_64| I_8..=I_64)
}

/// What a value that begins so is, for people.
pub(super) fn name(marker: u8) -> &'static str {
    match marker {
        ..=FIX_POS_LAST | FIX_NEG.. | U_8..=U_64 | I_8..=I_64 => "an integer",
        FIX_MAP..=FIX_MAP_LAST | MAP_16 | MAP_32 => "a map",
        FIX_ARRAY..=FIX_ARRAY_LAST | ARRAY_16 | ARRAY_32 => "an array",
        FIX_STR..=FIX_STR_LAST | STR_8..=STR_32 => "a string",
        NIL => "nil",
        RESERVED => "the byte 0xc1, which begins no value,",
        FALSE | TRUE => "a bool",
        BIN_8..=BIN_32 => "a byte string",
        EXT_8..=EXT_32 | FIX_EXT_1..=FIX_EXT_16 => "an extension",
        F_32 | F_64 => "a float",
    }
}
