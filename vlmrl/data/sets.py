"""The published sets, by name."""

from vlmrl.data import (
    blink,
    cv_bench,
    geometry3k,
    hallusionbench,
    mathvista,
    mmbench,
    mme_realworld_lite,
    mmvp,
    pixmo_count,
    pope,
    refcoco,
    sat,
    spatial_mm,
    threedsrbench,
    vstar,
    whatsup,
)

SETS = {
    part.SET.name: part.SET
    for part in (
        threedsrbench,
        cv_bench,
        spatial_mm,
        whatsup,
        vstar,
        mme_realworld_lite,
        mmbench,
        sat,
        pixmo_count,
        geometry3k,
        blink,
        mmvp,
        pope,
        hallusionbench,
        mathvista,
        refcoco,
    )
}
