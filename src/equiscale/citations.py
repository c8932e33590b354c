"""Who published what: the one place for the papers that the registries cite."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Citation:
    """Where something was published."""

    authors: str
    year: int
    title: str
    venue: str

    def __str__(self) -> str:
        return f"{self.authors}: {self.title}. {self.venue} {self.year}"

    @property
    def short(self) -> str:
        """First author and year, as in a table.

        Example:
            >>> SESN.short
            'Sosnovik et al. 2020'
        """
        first, *others = self.authors.split(", ")
        if len(others) == 1:
            return f"{first} and {others[0]} {self.year}"
        return f"{first} et al. {self.year}" if others else f"{first} {self.year}"


SESN = Citation("Sosnovik, Szmaja, Smeulders", 2020, "Scale-Equivariant Steerable Networks", "ICLR")
DISCO = Citation("Sosnovik, Moskalev, Smeulders", 2021, "DISCO: accurate Discrete Scale Convolutions", "BMVC")
TRANSFORM_KERNELS = Citation(
    "Sosnovik, Moskalev, Smeulders", 2021, "How to Transform Kernels for Scale-Convolutions", "ICCV VIPriors"
)
SI_CONVNET = Citation(
    "Kanazawa, Sharma, Jacobs",
    2014,
    "Locally Scale-Invariant Convolutional Neural Networks",
    "NIPS Deep Learning and Representation Learning Workshop",
)
SICNN = Citation(
    "Xu, Xiao, Zhang, Yang, Zhang", 2014, "Scale-Invariant Convolutional Neural Networks", "arXiv:1411.6369"
)
SEVF = Citation(
    "Marcos, Kellenberger, Lobry, Tuia",
    2018,
    "Scale equivariance in CNNs with vector fields",
    "ICML/FAIM Workshop",
)
DSS = Citation("Worrall, Welling", 2019, "Deep Scale-spaces: Equivariance Over Scale", "NeurIPS")
SS_CNN = Citation(
    "Ghosh, Gupta",
    2019,
    "Scale Steerable Filters for Locally Scale-Invariant Convolutional Neural Networks",
    "ICML Workshop on Theoretical Physics for Deep Learning, arXiv:1906.03861",
)
RESCALED_KERNELS = Citation(
    "Altstidl, Nguyen, Schwinn, Köferl, Mutschler, Eskofier, Zanca",
    2022,
    "Just a Matter of Scale? Reevaluating Scale Equivariance in Convolutional Neural Networks",
    "arXiv:2211.10288",
)
FOVEATED_PYRAMID = Citation(
    "Jansson, Lindeberg",
    2022,
    "Scale-Invariant Scale-Channel Networks: Deep Networks That Generalise to Previously Unseen Scales",
    "Journal of Mathematical Imaging and Vision",
)
GAUSSIAN_DERIVATIVE = Citation(
    "Lindeberg", 2022, "Scale-Covariant and Scale-Invariant Gaussian Derivative Networks", "JMIV"
)
BSPLINE = Citation("Bekkers", 2020, "B-Spline CNNs on Lie Groups", "ICLR")
FOURIER_BESSEL = Citation(
    "Zhu, Qiu, Calderbank, Sapiro, Cheng",
    2022,
    "Scaling-Translation-Equivariant Networks with Decomposed Convolutional Filters",
    "JMLR",
)
LEARNABLE_SCALES = Citation(
    "Basting, Bruintjes, Wiedemer, Kümmerer, Bethge, van Gemert",
    2024,
    "Scale Learning in Scale-Equivariant Convolutional Networks",
    "VISAPP",
)
U_NET = Citation(
    "Ronneberger, Fischer, Brox",
    2015,
    "U-Net: Convolutional Networks for Biomedical Image Segmentation",
    "MICCAI",
)
SEU_NET = Citation("Sangalli, Blusseau, Velasco-Forero, Angulo", 2022, "Scale Equivariant U-Net", "BMVC")
WIDE_RESNET = Citation("Zagoruyko, Komodakis", 2016, "Wide Residual Networks", "BMVC")
MNIST = Citation(
    "LeCun, Bottou, Bengio, Haffner",
    1998,
    "Gradient-based learning applied to document recognition",
    "Proceedings of the IEEE",
)
DIGITS = Citation(
    "Alpaydin, Kaynak", 1998, "Optical Recognition of Handwritten Digits", "UCI Machine Learning Repository"
)
STL10 = Citation(
    "Coates, Lee, Ng",
    2011,
    "An Analysis of Single-Layer Networks in Unsupervised Feature Learning",
    "AISTATS",
)
IMAGENETTE = Citation("Howard", 2019, "Imagenette", "github.com/fastai/imagenette")
CUTOUT = Citation(
    "DeVries, Taylor",
    2017,
    "Improved Regularization of Convolutional Neural Networks with Cutout",
    "arXiv:1708.04552",
)
