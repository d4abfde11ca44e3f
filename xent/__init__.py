from xent._losses import sigmoid_ce, softmax_ce, sparse_ce
