from kfp import dsl

from components import component


@component
def derive(supernet: dsl.Input[dsl.Model], genotype: dsl.Output[dsl.Artifact], drawing: dsl.Output[dsl.HTML]):
    """Derive the discrete architecture from a searched supernet.

    Args:
        supernet: Searched supernet, as written by the search component.

    Returns:
        genotype: Genotype as JSON. Its metadata carries its digest, those of supernet and image set, and the seed.
        drawing: The three cells, drawn. Its metadata is that of the genotype.
    """
    from arnas import task
    from arnas.stages import derive

    figures = derive.run(supernet.path, genotype.path, drawing=drawing.path)
    task.record(genotype, figures, forms=[drawing])
